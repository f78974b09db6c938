"""Names and addresses of one daemon's network: pure.

Guests hang on a bridge and see their gateway and name server as two addresses of it; behind the bridge the namespace routes, with masquerade,
into a second small network where the uplink's program is the gateway. So the uplink knows one neighbour, however many guests there are.
With a routed uplink the second network has two addresses, the host's and the namespace's, and nothing is masqueraded inside: the host knows
the way to the guests, and masquerades what they send on.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Final

from banger.model.errors import RefusedError
from banger.model.lease import Lease

BRIDGE: Final = "br0"
BRIDGE_MAC: Final = bytes.fromhex("02b4ffffffff")
UPLINK: Final = "uplink0"
MTU: Final = 65520
ROUTED_MTU: Final = 1500
MAX_LEASES: Final = 1000  # a Linux bridge has 1,024 ports
FIRST_GUEST: Final = 16  # the addresses below are for gateway, name server and what may come


@dataclass(frozen=True, slots=True)
class NetworkPlan:
    """The guests' network and the uplink's, both IPv4; they must not overlap. Private to the namespace, unless the uplink is ``routed``."""

    guests: str = "10.113.0.0/16"
    uplink: str = "10.114.0.0/24"
    routed: bool = False

    def __post_init__(self) -> None:
        guests, uplink = self._guests, self._uplink
        long = uplink.prefixlen != 31 if self.routed else uplink.prefixlen > 24
        if guests.overlaps(uplink) or guests.prefixlen > 26 or long:
            raise ValueError(f"networks {guests} and {uplink} overlap or are too small")

    @property
    def _guests(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network(self.guests)

    @property
    def _uplink(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network(self.uplink)

    @property
    def prefix_length(self) -> int:
        """Of the guests' network."""
        return self._guests.prefixlen

    @property
    def gateway(self) -> str:
        """The guests' gateway: the bridge."""
        return str(self._guests[1])

    @property
    def dns(self) -> str:
        """The guests' name server: the bridge's second address, from where questions go on to the uplink's."""
        return str(self._guests[2])

    @property
    def names(self) -> str:
        """The bridge's third address, where the daemon answers for the names of peers; see `Lease.names`."""
        return str(self._guests[3])

    @property
    def uplink_prefix_length(self) -> int:
        """Of the uplink's network."""
        return self._uplink.prefixlen

    @property
    def uplink_gateway(self) -> str:
        """The uplink program (slirp4netns fixes the last numbers of these three), or the host."""
        return str(self._uplink[0 if self.routed else 2])

    @property
    def uplink_dns(self) -> str:
        """Where the uplink program answers DNS; the host passes such questions on to whom it asks itself."""
        return str(self._uplink[0 if self.routed else 3])

    @property
    def uplink_address(self) -> str:
        """The namespace's own end of the uplink."""
        return str(self._uplink[1 if self.routed else 100])

    @property
    def mtu(self) -> int:
        """Of guests' and of the uplink's links: packets that leave a host by a card are no longer than a card's."""
        return ROUTED_MTU if self.routed else MTU

    @property
    def capacity(self) -> int:
        """How many leases there are."""
        return min(
            MAX_LEASES, self._guests.num_addresses - FIRST_GUEST - 1
        )  # not the broadcast address

    def lease(self, vm_id: str, index: int) -> Lease:
        """The lease number ``index``."""
        return Lease(
            vm_id=vm_id,
            index=index,
            mac=mac_address(index),
            ip=str(self._guests[FIRST_GUEST + index]),
            prefix_length=self.prefix_length,
            gateway=self.gateway,
            dns=self.dns,
        )

    def readdressed(self, lease: Lease) -> Lease:
        """The same VM's lease, its number and MAC, with the addresses of this network."""
        return replace(self.lease(lease.vm_id, lease.index), mac=lease.mac)

    def plan_lease(self, vm_id: str, taken: Iterable[Lease]) -> Lease:
        """The free lease with the smallest index; RefusedError if all are taken."""
        used = {lease.index for lease in taken}
        for index in range(self.capacity):
            if index not in used:
                return self.lease(vm_id, index)
        raise RefusedError(
            f"no address is free for VM {vm_id}",
            detail=f"all {self.capacity} of {self.guests} are taken",
            hint="banger vm list, and delete what you do not need",
        )


def mac_address(index: int) -> str:
    """A locally administered address: the number's own, so that the filter can know it before there is a VM. Nobody but the bridge sees it."""
    return (b"\x02\xb4" + index.to_bytes(2) + bytes(2)).hex(":")


def tap_name(lease: Lease) -> str:
    """The lease's TAP, at most 15 characters."""
    return f"tap{lease.index}"
