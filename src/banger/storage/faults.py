"""What the kernel or a tool says when disks cannot be made, as errors for people."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from banger.host import fs
from banger.model.errors import BangerError, CommandFailedError, HostLacksError

_TOLD_FULL = tuple(os.strerror(number) for number in fs.FULL)


def no_space(directory: Path, detail: str) -> HostLacksError:
    """The host's disk is full."""
    return HostLacksError(
        f"no space for a VM's disks on {directory}",
        detail=detail,
        hint="banger vm list, and delete what you do not need",
    )


@contextmanager
def clear_errors(directory: Path) -> Iterator[None]:
    """What fails within is raised as `clear_error` tells it."""
    try:
        yield
    except BaseException as error:
        clear = clear_error(error, directory)
        if clear is error:
            raise
        raise clear from error


def clear_error(error: BaseException, directory: Path) -> BaseException:
    """The plainest error for what went wrong in ``directory``; ``error`` itself if it says enough.

    Of a group its first error that is ours counts, else its first.
    """
    if isinstance(error, BaseExceptionGroup):
        inner = [clear_error(one, directory) for one in error.exceptions]
        return next((one for one in inner if isinstance(one, BangerError)), inner[0])
    if isinstance(error, OSError):
        if error.errno in fs.FULL:
            return no_space(directory, str(error))
        return HostLacksError(
            f"cannot work on the disks in {directory}",
            detail=str(error),
            hint=f"ls -ld {directory}",
        )
    if isinstance(error, CommandFailedError) and any(text in error.detail for text in _TOLD_FULL):
        return no_space(directory, error.detail)
    return error
