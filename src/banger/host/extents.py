"""Which blocks a file has and which of them other files have too, as its file system says (FIEMAP, linux/fiemap.h)."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass

_FIEMAP = 0xC020660B  # _IOWR('f', 11, struct fiemap)
_HEAD = struct.Struct("=QQIIII")  # start, length, flags, mapped extents, room for extents, reserved
_EXTENT = struct.Struct("=QQQQQIIII")  # logical, physical, length, 2 reserved, flags, 3 reserved
_LAST, _NOWHERE, _SHARED = 0x1, 0x2 | 0x4, 0x2000  # the second: UNKNOWN or DELALLOC
_AT_ONCE = 512
_MANY = 1 << 20  # a file in more pieces is not looked at to its end
_CANNOT = {errno.EOPNOTSUPP, errno.ENOTTY, errno.EINVAL, errno.EBADR}

Span = tuple[int, int]
"""Where some blocks lie on the disk: first byte and the one behind the last."""


@dataclass(frozen=True, slots=True)
class Extent:
    """Blocks of a file that lie together, and whether other files have them too."""

    span: Span
    shared: bool


def of(descriptor: int, stop: Callable[[], bool]) -> list[Extent] | None:
    """All extents of an open file that have a place on the disk; None if the file system does not say, or ``stop`` says so first."""
    found: list[Extent] = []
    start = 0
    while len(found) < _MANY:
        if stop():
            return None
        extents = _some(descriptor, start)
        if extents is None:
            return None
        for logical, physical, length, _, _, flags, *_ in extents:
            if not flags & _NOWHERE:
                found.append(Extent((physical, physical + length), bool(flags & _SHARED)))
            if flags & _LAST:
                return found
            start = logical + length
        if not extents:
            return found
    return None


def _some(descriptor: int, start: int) -> list[tuple[int, ...]] | None:
    buffer = bytearray(_HEAD.size + _AT_ONCE * _EXTENT.size)
    _HEAD.pack_into(buffer, 0, start, (1 << 64) - 1 - start, 0, 0, _AT_ONCE, 0)
    try:
        fcntl.ioctl(descriptor, _FIEMAP, buffer)
    except OSError as error:
        if error.errno in _CANNOT:
            return None
        raise
    count = _HEAD.unpack_from(buffer)[3]
    ends = _HEAD.size + count * _EXTENT.size
    return list(_EXTENT.iter_unpack(memoryview(buffer)[_HEAD.size : ends]))


def covered_bytes(spans: Iterable[Span]) -> int:
    """How many bytes lie in at least one of ``spans``. Pure."""
    total, end = 0, 0
    for begin, behind in sorted(spans):
        total += max(0, behind - max(begin, end))
        end = max(end, behind)
    return total


def device_of(descriptor: int) -> int:
    """The device on which the blocks of an open file lie: spans of different ones have nothing to do with each other."""
    return os.fstat(descriptor).st_dev
