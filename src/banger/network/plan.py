"""Addresses of the network: pure arithmetic.

The guests' prefix is 10.113.0.0/16: .0.1 is the bridge, which is their gateway; leases begin at .0.16. The uplink has a prefix of its own
(slirp4netns' 10.0.2.0/24), where .3 answers DNS.
"""

from __future__ import annotations

import hashlib
import ipaddress
from collections.abc import Sequence
from typing import Final

from banger.model.errors import RefusedError
from banger.model.lease import Lease

GUESTS: Final = ipaddress.IPv4Network("10.113.0.0/16")
GATEWAY: Final = str(GUESTS[1])
UPLINK: Final = ipaddress.IPv4Network("10.0.2.0/24")
DNS: Final = "10.0.2.3"
BRIDGE: Final = "br0"
UPLINK_NAME: Final = "uplink0"
MTU: Final = 65520
_FIRST = 16
MAX_LEASES: Final = 1000  # a Linux bridge has 1,024 ports


def plan_lease(vm_id: str, taken: Sequence[Lease]) -> Lease:
    """The free lease of the smallest index; RefusedError when all are taken."""
    used = {lease.index for lease in taken}
    index = next((number for number in range(MAX_LEASES) if number not in used), None)
    if index is None:
        raise RefusedError(
            f"all {MAX_LEASES} addresses are taken",
            hint="banger vm list, and delete what you do not need",
        )
    return Lease(
        vm_id, index, mac(vm_id), str(GUESTS[_FIRST + index]), GUESTS.prefixlen, GATEWAY, DNS
    )


def mac(vm_id: str) -> str:
    """A locally administered unicast MAC (IEEE 802c: second bit of the first octet set) out of the VM's id."""
    digest = hashlib.sha256(vm_id.encode()).digest()
    return ":".join(f"{octet:02x}" for octet in (0x02, *digest[:5]))


def tap_name(vm_id: str) -> str:
    """The VM's TAP: ``tap-`` and 11 digits of its id make the 15 characters that an interface name may have."""
    return f"tap-{vm_id[:11]}"
