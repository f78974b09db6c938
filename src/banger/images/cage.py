"""A program that reads what somebody else made, with one directory to write to: everything else of the host is read-only to it.

``debugfs`` writes what a file system's directories say, and a forged one may say that a name is a symlink first and a file then; tools
that unpack have had such holes as long as there are any. Runs inside `sandboxed`, whose mount namespace is changed here.
"""

from __future__ import annotations

import ctypes
import os
import sys
from pathlib import Path

from banger.host.namespaces import small_python
from banger.host.syscalls import MS_BIND, checked, mount, system_call
from banger.images.sandbox import sandboxed

_MOUNT_SETATTR = 442  # the same on x86-64 and arm64
_AT_FDCWD, _AT_RECURSIVE, _RDONLY = -100, 0x8000, 1


def caged(argv: list[str], writable: Path) -> list[str]:
    """As `sandboxed`, and ``argv`` (its program by its absolute path) begins in the directory ``writable``, all it can write to."""
    return sandboxed(small_python("banger.images.cage", str(writable), *argv))


def _set_read_only(path: str, *, on: bool) -> None:
    """mount_setattr(2) (linux/mount.h): all mounts from ``path`` on read-only, or this one writable."""
    attributes = (ctypes.c_uint64 * 4)(_RDONLY if on else 0, 0 if on else _RDONLY, 0, 0)
    raw = ctypes.create_string_buffer(bytes(attributes), 32)
    where = ctypes.create_string_buffer(os.fsencode(path))
    flags = _AT_RECURSIVE if on else 0
    checked(system_call(_MOUNT_SETATTR, _AT_FDCWD, where, flags, raw, 32), path)


def main() -> None:
    """Arguments: the writable directory, then the command line."""
    writable, *argv = sys.argv[1:]
    _set_read_only("/", on=True)
    mount(writable, writable, None, MS_BIND)
    _set_read_only(writable, on=False)
    os.chdir(writable)
    os.execv(argv[0], argv)  # noqa: S606  argv, no shell
