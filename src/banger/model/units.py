"""Sizes as people write them and as banger keeps them. Binary units only: 2G is 2 GiB."""

from __future__ import annotations

import re

from banger.model.errors import InvalidInputError

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30
_FACTORS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
_SIZE = re.compile(r"(\d{1,15})(?:\.(\d{1,3}))?\s*([KMGT]?)(?:i?B)?", re.IGNORECASE | re.ASCII)


def parse_size(text: str, *, what: str = "size") -> int:
    """Bytes of ``"2G"``, ``"512M"``, ``"1.5GiB"``, ``"4096"``; InvalidInputError for anything else."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise InvalidInputError(
            f"{what} {text!r} is not a size",
            hint="write a number with K, M, G or T, for example 2G",
        )
    whole, fraction, unit = match.groups()
    factor = _FACTORS[unit.upper()]
    return int(whole) * factor + (int(fraction) * factor // 10 ** len(fraction) if fraction else 0)


def format_size(size_bytes: int) -> str:
    """``size_bytes`` in the largest binary unit that keeps it readable: ``8G``, ``1.5G``, ``512M``."""
    for unit, factor in reversed(_FACTORS.items()):
        if unit and size_bytes >= factor:
            text = f"{size_bytes / factor:.1f}".removesuffix(".0")
            return f"{text}{unit}"
    return f"{size_bytes}B"


def format_duration(duration_ms: float) -> str:
    """``duration_ms`` for a person: ``12 ms``, ``3.4 s``, ``5 min 12 s``, ``3 h 5 min``, ``2 d 4 h``."""
    if duration_ms < 1000:
        return f"{duration_ms:.0f} ms"
    seconds = duration_ms / 1000
    if seconds < 60:
        return f"{seconds:.1f} s"
    whole = int(seconds)
    for big, big_name, small, small_name in ((86400, "d", 3600, "h"), (3600, "h", 60, "min")):
        if whole >= big:
            return f"{whole // big} {big_name} {whole % big // small} {small_name}"
    return f"{whole // 60} min {whole % 60} s"
