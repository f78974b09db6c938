"""Bytes to and from this process's own descriptors."""

from __future__ import annotations

import os

CHUNK_BYTES = 64 * 1024
BROKEN_PIPE = 141  # 128 + SIGPIPE, as a shell says it


def write_all(descriptor: int, data: bytes) -> bool:
    """Write all of ``data``; False if nobody reads any more."""
    left = memoryview(data)
    try:
        while left:
            left = left[os.write(descriptor, left) :]
    except BrokenPipeError:
        return False
    return True
