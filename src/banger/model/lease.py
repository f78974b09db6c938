"""A lease: the addresses that one VM holds from create to delete, in whatever network it runs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Lease:
    """MAC and IPv4 address of one VM; ``index`` counts from 0 within the daemon's network and is unique there."""

    vm_id: str
    index: int
    mac: str
    ip: str
    prefix_length: int
    gateway: str
    dns: str
