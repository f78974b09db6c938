"""Text for a terminal: what a guest says must not steer it."""

from __future__ import annotations

import os
import re
import sys

from banger.model.units import format_duration

NAME_WIDTH = 10
DURATION_WIDTH = 10
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_ESCAPES = re.compile(
    rb"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07\x1b]{0,4096}(?:\x07|\x1b\\)|[PX^_][^\x1b]{0,4096}\x1b\\|[ -/]*[0-~])"
)
_CONTROL_BYTES = re.compile(rb"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def clean(text: str) -> str:
    """``text`` on one line without control characters."""
    return _CONTROL.sub("\N{REPLACEMENT CHARACTER}", text).replace("\n", " ").replace("\t", " ")


def calm(data: bytes) -> bytes:
    """A piece of a log for a terminal: colours, cursor movements and other commands to the terminal are left out."""
    return _CONTROL_BYTES.sub(b"", _ESCAPES.sub(b"", data))


def yes_no(value: object) -> str:
    """``yes`` or ``no``."""
    return "yes" if value else "no"


def dash(value: object) -> str:
    """``value``, or ``-`` for one that is missing."""
    return "-" if value is None or value == "" else clean(str(value))


def draws() -> bool:
    """Whether stderr is a terminal on which a line can be drawn anew."""
    return sys.stderr.isatty() and os.environ.get("TERM", "dumb") not in {"dumb", ""}


def stage_line(name: str, took_ms: float | None, end: str) -> str:
    """``disks      …     12 ms  qcow2, reflink``."""
    took = "" if took_ms is None else format_duration(took_ms)
    return clean(f"{name:<{NAME_WIDTH}} … {took:>{DURATION_WIDTH}}  {end}").rstrip()
