"""The nft rules in the network's namespace: pure text. All is refused that is not stated here.

Frames of a guest pass only with the MAC and the IPv4 address of its lease on its own TAP (IPv4 and ARP; everything else, IPv6 above all, is
dropped). Nothing is bridged from one TAP to another. Packets are routed to the uplink, but not to any address of the host, to link-local
(cloud metadata) or multicast addresses, nor into the uplink's own prefix but for DNS. The namespace itself answers ping, no more.
"""

from __future__ import annotations

from collections.abc import Iterable

from banger.model.lease import Lease
from banger.network.plan import BRIDGE, DNS, UPLINK, UPLINK_NAME, tap_name

_RULES = """\
table bridge banger {{
    set leases {{ type ifname . ether_addr . ipv4_addr; }}
    chain spoofing {{
        type filter hook prerouting priority -300; policy accept;
        iifname "tap-*" jump guest
    }}
    chain guest {{
        ether type ip iifname . ether saddr . ip saddr @leases accept
        ether type arp iifname . ether saddr . arp saddr ip @leases iifname . arp saddr ether . arp saddr ip @leases accept
        drop
    }}
    chain isolation {{ type filter hook forward priority 0; policy drop; }}
}}
table inet banger {{
    set host_addresses {{ type ipv4_addr; {hosts}}}
    chain input {{
        type filter hook input priority 0; policy drop;
        iifname "lo" accept
        ct state established,related accept
        iifname "{bridge}" icmp type echo-request accept
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state established,related accept
        iifname != "{bridge}" drop
        oifname != "{uplink}" drop
        ip daddr @host_addresses drop
        ip daddr {{ 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 255.255.255.255 }} drop
        ip daddr {dns} udp dport 53 accept
        ip daddr {dns} tcp dport 53 accept
        ip daddr {prefix} drop
        meta nfproto ipv4 accept
    }}
    chain outward {{
        type nat hook postrouting priority 100; policy accept;
        oifname "{uplink}" masquerade
    }}
}}
"""


def ruleset(host_addresses: Iterable[str]) -> str:
    """The tables as they are before any VM; replaces what is there in one transaction."""
    listed = ", ".join(sorted(host_addresses))
    hosts = f"elements = {{ {listed} }}; " if listed else ""
    fresh = "table bridge banger\ndelete table bridge banger\ntable inet banger\ndelete table inet banger\n"
    return fresh + _RULES.format(
        hosts=hosts, bridge=BRIDGE, uplink=UPLINK_NAME, dns=DNS, prefix=UPLINK
    )


def admit(lease: Lease) -> str:
    """Let a VM's frames pass."""
    return f"add element bridge banger leases {{ {_key(lease)} }}\n"


def dismiss(lease: Lease) -> str:
    """Let them pass no more; adding first makes it idempotent."""
    return admit(lease) + f"delete element bridge banger leases {{ {_key(lease)} }}\n"


def replace_host_addresses(host_addresses: Iterable[str]) -> str:
    """The host has other addresses now."""
    listed = ", ".join(sorted(host_addresses))
    added = f"add element inet banger host_addresses {{ {listed} }}\n" if listed else ""
    return f"flush set inet banger host_addresses\n{added}"


def _key(lease: Lease) -> str:
    return f'"{tap_name(lease.vm_id)}" . {lease.mac} . {lease.ip}'
