"""Values that a user keeps to pass into guests: one file each, for its owner's eyes, below the state directory.

They are read by the CLI when a session begins, and go into that session's environment: never to the daemon's database or log, to a VM's
directory or to a disk.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from banger.host import fs
from banger.model.errors import BangerError, InvalidInputError, NotFoundError

MAX_VALUE_BYTES = 32 << 10
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,127}", re.ASCII)


def check_name(name: str) -> str:
    """``name`` if a variable that goes into a guest can have it; InvalidInputError."""
    if _NAME.fullmatch(name) is None:
        shown = name if len(name) <= 40 else name[:37] + "..."
        raise InvalidInputError(
            f"{shown!r} is not the name of a variable",
            detail="a name begins with a letter and has letters, digits and '_'",
            hint="write, for example, ANTHROPIC_API_KEY",
        )
    if name == "LANG" or name.startswith("LC_"):
        raise InvalidInputError(
            f"the locale {name} is not passed into guests",
            detail="a guest has no locale but C.UTF-8",
            hint="leave it out",
        )
    return name


def check_value(name: str, value: str) -> str:
    """``value`` if a variable can have it; InvalidInputError, which does not show it."""
    if not value or "\0" in value or len(os.fsencode(value)) > MAX_VALUE_BYTES:
        raise InvalidInputError(
            f"the value of {name} is empty, longer than {MAX_VALUE_BYTES} bytes or has a zero byte",
            hint=f"banger secret set {name} < FILE",
        )
    return value


class SecretStore:
    """The secrets in ``directory``, which need not exist."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory

    def names(self) -> list[str]:
        """What is stored, sorted."""
        found = self._dir.iterdir() if self._dir.is_dir() else []
        return sorted(path.name for path in found if _NAME.fullmatch(path.name))

    def get(self, name: str) -> str | None:
        """The value of ``name``, None if there is none; BangerError if it cannot be read."""
        path = self._dir / check_name(name)
        try:
            return os.fsdecode(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BangerError(
                f"secret {name} cannot be read",
                detail=f"{path}: {error.strerror}",
                hint=f"banger secret set {name}",
            ) from error

    def set(self, name: str, value: str) -> None:
        """Store ``value``, readable by its owner alone."""
        path = self._dir / check_name(name)
        data = os.fsencode(check_value(name, value))
        fs.make_private_dir(self._dir)
        fs.write_atomic(path, data)

    def delete(self, name: str) -> None:
        """Remove ``name``; NotFoundError."""
        try:
            (self._dir / check_name(name)).unlink()
        except FileNotFoundError:
            raise NotFoundError(f"no secret {name}", hint="banger secret list") from None
