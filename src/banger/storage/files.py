"""What is asked of a disk's file: that it is there, its size, and the file system in it."""

from __future__ import annotations

from pathlib import Path

from banger.model.errors import HostLacksError
from banger.storage import disk_format


def ext4_bytes(path: Path) -> int | None:
    """The size that the ext4 in ``path`` says it has; None if there is none."""
    with path.open("rb") as file:
        return disk_format.read_ext4_bytes(file.read(disk_format.EXT4_HEAD_BYTES))


def check_size(path: Path, size_bytes: int | None, hint: str) -> int:
    """The size of ``path``, which must be there and, if given, have ``size_bytes``; else HostLacksError with ``hint``."""
    try:
        real = path.stat().st_size
    except FileNotFoundError:
        raise HostLacksError(f"{path} is missing", hint=hint) from None
    if size_bytes is not None and real != size_bytes:
        raise HostLacksError(
            f"{path} has the wrong size",
            detail=f"it has {real} bytes, {size_bytes} were expected",
            hint=hint,
        )
    return real
