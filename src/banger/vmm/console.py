"""Logs that a VMM appends to (the serial console, its own messages): capped in place, shown safely.

The VMM has the file open with O_APPEND, so that it may be cut under it: what it writes next lands at the new end.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
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

    Lines that arrive during the cut are kept too, but for those between its last two system calls. A writer that does not append goes on
    where it was: the hole that this leaves counts for nothing, and is closed by the next cut.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        pieces = _data(descriptor)
        excess = sum(end - begin for begin, end in pieces) - max_bytes // 2
        if excess <= max_bytes - max_bytes // 2:
            return False
        _move_down(descriptor, pieces, excess, 2 * max_bytes)
    finally:
        os.close(descriptor)
    return True


def _data(descriptor: int) -> list[tuple[int, int]]:
    """Where there is something in a file: begins and ends; a file system that knows no holes has one such piece."""
    size = os.fstat(descriptor).st_size
    pieces: list[tuple[int, int]] = []
    position = 0
    with suppress(OSError):  # ENXIO: nothing but a hole is left
        while position < size:
            begin = os.lseek(descriptor, position, os.SEEK_DATA)
            position = os.lseek(descriptor, begin, os.SEEK_HOLE)
            pieces.append((begin, min(position, size)))
    return pieces


def _move_down(
    descriptor: int, pieces: list[tuple[int, int]], skip: int, most_late_bytes: int
) -> None:
    """Move all but the first ``skip`` bytes of ``pieces``, and what is appended meanwhile, to the front; cut the rest off."""
    kept = 0
    last = pieces[-1][1]
    for begin, end in [*pieces[:-1], (pieces[-1][0], last + most_late_bytes)]:
        if skip >= end - begin:
            skip -= end - begin
            continue
        position, skip = begin + skip, 0
        while chunk := os.pread(descriptor, min(1 << 16, end - position), position):
            position += len(chunk)  # copies down, never overtakes itself
            if kept == 0:  # begin with a whole line if there is one
                chunk = chunk[chunk.find(b"\n") + 1 :]
            kept += os.pwrite(descriptor, chunk.replace(b"\0", b""), kept)
    os.ftruncate(descriptor, kept)


def printable_tail(
    path: Path, lines: int, *, since_bytes: int = 0, without: Callable[[str], bool] | None = None
) -> str:
    """The last ``lines`` lines of ``path`` for a person: no control sequences, no empty lines, each at most 400 characters.

    A kernel panic is quoted even if a longer trace follows it. ``since_bytes``: nothing before this offset, unless the file was cut meanwhile.
    Lines for which ``without`` is true are left out. "" if there is nothing.
    """
    size = fs.length_bytes(path)
    limit = min(TAIL_BYTES, size - since_bytes) if since_bytes <= size else TAIL_BYTES
    data = b""
    with suppress(OSError):
        data = fs.read_tail(path, limit)
    text = _ESCAPES.sub("", data.decode("utf-8", errors="replace")).replace("\r", "\n")
    shown = ("".join(c for c in line if c == "\t" or c.isprintable()) for line in text.split("\n"))
    kept = [
        line[:LINE_CHARACTERS] for line in shown if line.strip() and not (without and without(line))
    ]
    ended = kept[-lines:]
    panic = [line for line in kept[:-lines] if PANIC in line][-1:]
    return "\n".join([*panic, "…", *ended] if panic else ended)
