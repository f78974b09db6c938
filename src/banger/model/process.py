"""Which process is meant, beyond doubt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ProcessIdentity:
    """A process that cannot be mistaken for another: pid, start time (clock ticks since boot), boot id."""

    pid: int
    start_ticks: int
    boot_id: str
