"""What a long command says on its way, and how the host's refusals are told."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from banger.host import fs
from banger.model.errors import HostLacksError
from banger.model.units import format_size

_FULL = {errno.ENOSPC, errno.EDQUOT}
_FORBIDDEN = {errno.EACCES, errno.EPERM, errno.EROFS}
OWN_PLACE = "set BANGER_BUNDLE_DIR to a directory of your own"


class Reporter(Protocol):
    """Is told how far a command has come."""

    def advance(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """``stage`` (download, copy, unpack) has done so much of its work."""
        ...

    def done(self, stage: str, detail: str) -> None:
        """``stage`` is over."""
        ...

    def note(self, sentence: str) -> None:
        """Something that a person should know."""
        ...


class Silent:
    """A reporter that nobody listens to."""

    def advance(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """Say nothing."""

    def done(self, stage: str, detail: str) -> None:
        """Say nothing."""

    def note(self, sentence: str) -> None:
        """Say nothing."""


def is_full(error: OSError) -> bool:
    """Whether ``error`` says that there is no room left."""
    return error.errno in _FULL


def no_space(where: Path, detail: str) -> HostLacksError:
    """The error for a disk that is too small."""
    return HostLacksError(
        f"no space for the runtime bundle in {where}",
        detail=detail,
        hint=f"free some space and do it again, or {OWN_PLACE}",
    )


@contextmanager
def host_errors(where: Path, command: str) -> Iterator[None]:
    """An OSError in this block becomes a HostLacksError about ``where``. ``command`` is what a privileged user would run."""
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        detail = f"{error.filename}: {reason}" if error.filename else reason
        if is_full(error):
            there = next(path for path in (where, *where.parents) if path.exists())
            free = format_size(fs.free_bytes(there))
            raise no_space(where, f"{detail}\n{free} are free") from error
        hint = f"sudo {command}, or {OWN_PLACE}" if error.errno in _FORBIDDEN else f"ls -la {where}"
        raise HostLacksError(f"{where} cannot be written", detail=detail, hint=hint) from error
