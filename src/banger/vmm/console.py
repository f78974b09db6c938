"""Logs that a VMM appends to (the serial console, its own messages): capped in place, shown safely.

The VMM has the file open with O_APPEND, so that it may be truncated under it: what it writes next lands at the new end.
Bytes that arrive between copy and truncate are lost; a log may lose lines, never grow without end.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

from banger.host import fs

_ESCAPES = re.compile(r"\x1b(\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]*(\x07|\x1b\\)|[@-_])")
_UNPRINTABLE = re.compile(r"[^\t\n\x20-\x7e\xa0-\U0010ffff]")
TAIL_BYTES = 16 * 1024
LINE_CHARACTERS = 400


def cap_log(path: Path, max_bytes: int) -> bool:
    """Keep the newest half of ``path`` if it has outgrown ``max_bytes``; True if it was cut. A missing file is fine."""
    try:
        size = path.stat().st_size
    except FileNotFoundError:
        return False
    if size <= max_bytes:
        return False
    tail = fs.read_tail(path, max_bytes // 2)
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, tail[tail.find(b"\n") + 1 :], 0)
    finally:
        os.close(descriptor)
    return True


def printable_tail(path: Path, lines: int) -> str:
    """The last ``lines`` lines of ``path`` without control sequences, each at most 400 characters; "" if there is nothing."""
    text = fs.read_tail(path, TAIL_BYTES).decode("utf-8", errors="replace").replace("\r", "")
    text = _UNPRINTABLE.sub("", _ESCAPES.sub("", text))
    kept = [line[:LINE_CHARACTERS] for line in text.split("\n") if line.strip()]
    return "\n".join(kept[-lines:])
