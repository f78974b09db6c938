"""Files without the zeros that they need not keep."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

from banger.host import fs
from banger.host.syscalls import punch_hole

_BLOCK = 64 * 1024
_CANNOT = {errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOTTY}


def drop_zeros(path: Path, *, between: fs.Between = fs.go_on) -> int:
    """Give back the room of all blocks of ``path`` that are zeros, and of what was set aside and never written; how many bytes that was.

    The content stays as it is. Where the file system cannot, nothing is done.
    """
    before = fs.allocated_bytes(path)
    descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
    try:
        for begin, end in _empty(descriptor, between):
            punch_hole(descriptor, begin, end - begin)
    except OSError as error:
        if error.errno not in _CANNOT:
            raise
    finally:
        os.close(descriptor)
    return max(0, before - fs.allocated_bytes(path))


def _empty(descriptor: int, between: fs.Between) -> Iterator[tuple[int, int]]:
    """Begin and end of every run of bytes that read as zeros, in steps of `_BLOCK`."""
    size_bytes, position, zeros = os.fstat(descriptor).st_size, 0, bytes(_BLOCK)
    while position < size_bytes:
        try:
            data = os.lseek(descriptor, position, os.SEEK_DATA)
        except OSError as error:
            if error.errno != errno.ENXIO:
                raise
            data = size_bytes
        if data > position:
            yield position, data
        position = data
        behind = os.lseek(descriptor, data, os.SEEK_HOLE) if data < size_bytes else size_bytes
        while position < behind:
            between()
            block = os.pread(descriptor, min(_BLOCK, behind - position), position)
            if not block:
                return
            if block == zeros[: len(block)]:
                yield position, position + len(block)
            position += len(block)
