"""Logs that a VMM appends to (the serial console, its own messages): capped in place, shown safely.

The VMM has the file open with O_APPEND, so that it may be cut under it: what it writes next lands at the new end.
"""

from __future__ import annotations

import os
import re
from contextlib import suppress
from pathlib import Path

from banger.host import fs

_ESCAPES = re.compile(
    r"\x1b(\[[0-?]*[ -/]*[@-~]|[\]PX^_][^\x07\x1b\n]{0,256}(\x07|\x1b\\)|[ -/]*[0-Z\\^-~])"
)
PANIC = "Kernel panic - not syncing"
TAIL_BYTES = 16 * 1024
LINE_CHARACTERS = 400


def cap_log(path: Path, max_bytes: int) -> bool:
    """Keep the newest half of ``path`` if it has outgrown ``max_bytes``; True if it was cut. A missing file is fine.

    Lines that arrive during the cut are kept too, but for those between its last two system calls.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        size = os.fstat(descriptor).st_size
        if size <= max_bytes:
            return False
        position = size - max_bytes // 2
        kept = 0
        while chunk := os.pread(
            descriptor, 1 << 16, position
        ):  # copies down, never overtakes itself
            position += len(chunk)
            if kept == 0:  # begin with a whole line if there is one
                chunk = chunk[chunk.find(b"\n") + 1 :]
            kept += os.pwrite(descriptor, chunk, kept)
            if position >= 2 * max_bytes + size:  # somebody writes as fast as we copy
                break
        os.ftruncate(descriptor, kept)
    finally:
        os.close(descriptor)
    return True


def printable_tail(path: Path, lines: int, *, since_bytes: int = 0) -> str:
    """The last ``lines`` lines of ``path`` for a person: no control sequences, no empty lines, each at most 400 characters.

    A kernel panic is quoted even if a longer trace follows it. ``since_bytes``: nothing before this offset, unless the file was cut meanwhile. "" if there is nothing.
    """
    size = fs.length_bytes(path)
    limit = min(TAIL_BYTES, size - since_bytes) if since_bytes <= size else TAIL_BYTES
    data = b""
    with suppress(OSError):
        data = fs.read_tail(path, limit)
    text = _ESCAPES.sub("", data.decode("utf-8", errors="replace")).replace("\r", "\n")
    shown = ("".join(c for c in line if c == "\t" or c.isprintable()) for line in text.split("\n"))
    kept = [line[:LINE_CHARACTERS] for line in shown if line.strip()]
    ended = kept[-lines:]
    panic = [line for line in kept[:-lines] if PANIC in line][-1:]
    return "\n".join([*panic, "…", *ended] if panic else ended)
