"""Releases of Firecracker: which banger can use, and what some of them get wrong."""

from __future__ import annotations

import re
from typing import Final

Version = tuple[int, int, int]

OLDEST: Final[Version] = (1, 8, 0)
"""The first that describes its virtio devices by ACPI, which is how the kernels of distributions find them."""

PAUSE_CUTS_VSOCK: Final = frozenset({(1, 16, 0), (1, 16, 1)})
"""After pause and resume their vsock device delivers nothing any more (fixed by firecracker-microvm/firecracker#6100)."""


def parse(text: str) -> Version | None:
    """The release in ``Firecracker v1.16.1`` (the first line of ``--version``) or ``1.17.0-dev`` (the API); None if there is none."""
    found = re.match(r"(?:Firecracker v)?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?![\d.])", text)
    return (int(found[1]), int(found[2]), int(found[3])) if found else None


def since(text: str) -> Version:
    """The first release that ``1.14`` names."""
    major, minor = text.split(".")
    return int(major), int(minor), 0


def words(version: Version) -> str:
    """As people write it: ``1.16.1``."""
    return ".".join(map(str, version))
