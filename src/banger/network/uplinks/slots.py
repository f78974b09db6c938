"""Addresses and names of routed uplinks: pure. Whoever asks for an uplink gets a slot; all names follow from its number.

The private prefix is cut into networks of 1024 addresses. The first one holds the transfer networks, two addresses a slot (the host's end,
then the namespace's); slot N has the Nth of the others for its guests.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

from banger.model.errors import InvalidInputError, RefusedError

DEFAULT_PREFIX: Final = "10.115.0.0/16"
GUESTS_LENGTH: Final = 22  # a thousand leases
TRANSFER_LENGTH: Final = 31
MAX_SLOTS: Final = 255
LINK_STEM: Final = "banger-up"
PEER: Final = "uplink0"
_PRIVATE: Final = tuple(
    map(
        ipaddress.IPv4Network,
        ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "198.18.0.0/15"),
    )
)
_OTHERS: Final = ("10.213.0.0/16", "172.29.0.0/16", "198.18.0.0/16", "192.168.224.0/20")
"""Prefixes to propose where the configured one is in use."""

Network = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Slot:
    """One uplink's number, and its guests' network and transfer network as text."""

    number: int
    guests: str
    transfer: str

    @property
    def link(self) -> str:
        """The host's end."""
        return f"{LINK_STEM}{self.number}"

    @property
    def host_address(self) -> str:
        """The host's address in the transfer network: the namespace's gateway."""
        return str(ipaddress.IPv4Network(self.transfer)[0])

    @property
    def inside_address(self) -> str:
        """The namespace's own address in the transfer network."""
        return str(ipaddress.IPv4Network(self.transfer)[1])

    def mac(self, token: str) -> bytes:
        """The MAC of the host's end: it tells our link from somebody else's of this name. ``token`` is the ledger's."""
        return b"\x02\xb5" + hashlib.sha256(f"{token} {self.number}".encode()).digest()[:4]


@dataclass(frozen=True, slots=True)
class SlotPlan:
    """All slots of one private prefix; InvalidInputError if it is none or too small."""

    prefix: str = DEFAULT_PREFIX

    def __post_init__(self) -> None:
        try:
            network = ipaddress.IPv4Network(self.prefix)
        except ValueError as error:
            raise _wrong(self.prefix, str(error)) from error
        if not 8 <= network.prefixlen <= GUESTS_LENGTH - 2:
            raise _wrong(self.prefix, f"its length must be 8 to {GUESTS_LENGTH - 2}")
        if not any(network.subnet_of(private) for private in _PRIVATE):
            raise _wrong(self.prefix, "it is not a private network")

    @property
    def network(self) -> ipaddress.IPv4Network:
        """The prefix as a value."""
        return ipaddress.IPv4Network(self.prefix)

    @property
    def count(self) -> int:
        """How many slots there are; they are numbered from 1."""
        return min(MAX_SLOTS, (1 << (GUESTS_LENGTH - self.network.prefixlen)) - 1)

    def slot(self, number: int) -> Slot:
        """The slot ``number``."""
        if not 1 <= number <= self.count:
            raise ValueError(f"slot {number}")
        start = int(self.network.network_address)
        guests = start + (number << (32 - GUESTS_LENGTH))
        transfer = start + (number << (32 - TRANSFER_LENGTH))
        return Slot(
            number,
            f"{ipaddress.IPv4Address(guests)}/{GUESTS_LENGTH}",
            f"{ipaddress.IPv4Address(transfer)}/{TRANSFER_LENGTH}",
        )

    def choose(self, taken: Iterable[int], uid: int) -> Slot:
        """A free slot: the same one for the same user where it can be; RefusedError if none is free."""
        used = set(taken)
        for step in range(self.count):
            number = 1 + (uid + step) % self.count
            if number not in used:
                return self.slot(number)
        raise RefusedError(
            "no uplink is free on this host",
            detail=f"all {self.count} of {self.prefix} are in use",
            hint="sudo nft list table inet banger_host",
        )

    def check_free(self, routes: Iterable[Network]) -> None:
        """RefusedError if one of the host's ``routes`` (address, prefix length), without default routes and our own, overlaps."""
        found = list(routes)
        clash = next(overlapping(self.network, found), None)
        if clash is None:
            return
        free = (
            each for each in _OTHERS if not any(overlapping(ipaddress.IPv4Network(each), found))
        )
        raise RefusedError(
            f"the guests' prefix {self.prefix} is in use on this host",
            detail=f"the host has a route or an address in {clash}",
            hint=f'give banger-helper another one: bridge_prefix = "{next(free, "a private network")}" in /etc/banger/config.toml',
        )


def overlapping(
    network: ipaddress.IPv4Network, routes: Iterable[Network]
) -> Iterator[ipaddress.IPv4Network]:
    """Those of ``routes`` that overlap; default routes (in one piece or in two halves, as VPNs have them) do not count."""
    for address, length in routes:
        other = ipaddress.IPv4Network(f"{address}/{length}", strict=False)
        if length > 1 and network.overlaps(other):
            yield other


def _wrong(prefix: str, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"guests' prefix {prefix!r} is not allowed",
        detail=why,
        hint=f"use a private network such as {DEFAULT_PREFIX}",
    )
