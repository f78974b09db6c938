"""A lease: the addresses that one VM holds from create to delete, in whatever network it runs."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from typing import NamedTuple


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

    @property
    def names(self) -> str:
        """Where a guest asks for the names of VMs that it reaches: the address after ``dns``, in a network of banger's own."""
        return str(ipaddress.IPv4Address(self.dns) + 1)


class Traffic(NamedTuple):
    """Bytes that a guest sent and received, frames' headers included."""

    sent_bytes: int
    received_bytes: int
