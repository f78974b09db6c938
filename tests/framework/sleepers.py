"""Processes that a test knows again by a number among their arguments."""

import contextlib
from pathlib import Path


def with_argument(number):
    """Pids of the processes of this host that have ``number`` as an argument."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if str(number).encode() in (entry / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(entry.name))
    return found
