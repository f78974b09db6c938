"""The entry point of ``banger``: small, so that a command's answer is there before one has let go of the key."""

from __future__ import annotations

import gc
import os
import sys

STARTUP_GC_THRESHOLD = 50_000


def main() -> None:
    """Run one command line and end the process with its exit status."""
    gc.set_threshold(
        STARTUP_GC_THRESHOLD
    )  # imports make no garbage; collecting there costs a tenth of the start
    from banger.cli.app import run  # noqa: PLC0415  after the line above

    status = run(sys.argv[1:])
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or 1
    os._exit(
        status
    )  # nothing is left to be torn down, and threads in a blocked read must not hold us


if __name__ == "__main__":
    main()
