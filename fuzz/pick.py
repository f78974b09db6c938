"""Pick from what a target has learned: ``python -m fuzz.pick TARGET DIRECTORY KEPT COUNT`` prints names of files in DIRECTORY/corpus.

Each reaches lines of banger that neither KEPT nor those before it do; the one that reaches most comes first.
"""

from __future__ import annotations

import logging
import sys
from contextlib import suppress
from pathlib import Path
from types import FrameType

from fuzz.confine import confine
from fuzz.targets import TARGETS, Try

Line = tuple[str, int]
Tracer = object


def reached(attempt: Try, data: bytes) -> set[Line]:
    """The lines of banger and its agent that an input reaches."""
    lines: set[Line] = set()

    def trace(frame: FrameType, event: str, _argument: object) -> Tracer:
        file = frame.f_code.co_filename
        if "/banger" not in file and "tarfile" not in file:
            return None
        if event == "line":
            lines.add((file, frame.f_lineno))
        return trace

    sys.settrace(trace)  # type: ignore[arg-type]
    try:
        with suppress(Exception):
            attempt(data)
    finally:
        sys.settrace(None)
    return lines


def main() -> None:
    """See the module."""
    logging.disable(logging.CRITICAL)
    name, directory, kept, count = sys.argv[1:]
    attempt = TARGETS[name].load()
    confine(directory)
    known: set[Line] = set()
    for path in Path(kept).iterdir():
        known |= reached(attempt, path.read_bytes())
    learned = {path: reached(attempt, path.read_bytes()) for path in sorted(Path(directory, "corpus").iterdir())}  # fmt: skip
    for _ in range(int(count)):
        best = max(learned, key=lambda path: len(learned[path] - known), default=None)
        if best is None or not learned[best] - known:
            return
        known |= learned[best]
        print(best.name)


if __name__ == "__main__":
    main()
