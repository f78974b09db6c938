"""The packet filter of the namespace: pure text for ``nft -f -``, one transaction a change. What no rule allows is dropped.

Table ``bridge`` is stateless, for not every kernel tracks connections there: each frame of a guest must carry the interface, MAC and IPv4
address that are pinned together in a set, and be ARP or IPv4; nothing passes from port to port. Guests that are peers reach each other by
way of the bridge's own address, which answers ARP for them: a set of pairs, in both tables. Table ``inet`` lets those guests out
through the uplink that may go there, but not to what is closed, and lets nothing in but replies to those; who may no more is told at the
next packet, and so is its peer. IPv6 goes nowhere. Table ``ip`` translates.
Guests are elements of sets, never rules. With a routed uplink the host itself may open connections to guests, by its address there, and nothing
is translated.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from banger.model.lease import Lease
from banger.network.plan import BRIDGE, UPLINK, NetworkPlan, tap_name

TABLE: Final = "banger"
PINS: Final = "pins"
OUTWARD: Final = "outward"
PEERS: Final = "peers"
NEVER: Final = (
    "0.0.0.0/8",  # this host
    "127.0.0.0/8",  # loopback
    "169.254.0.0/16",  # link-local: metadata services of clouds
    "224.0.0.0/4",  # multicast
    "240.0.0.0/4",  # reserved, broadcast
)
"""What no guest reaches, whatever the host's addresses are."""

_FROM_HOST: Final = """\
        iifname {uplink} oifname {bridge} ip saddr {host} accept
        iifname {bridge} oifname {uplink} ip daddr {host} ct direction reply ct state established,related accept
"""
_MASQUERADE: Final = "        oifname {uplink} masquerade\n"
_RULES: Final = """\
table bridge banger {{
    set pins {{ type ifname . ether_addr . ipv4_addr; }}
    set peers {{ type ipv4_addr . ipv4_addr; }}
    chain guests {{
        type filter hook prerouting priority -300; policy drop;
        ether type arp arp htype 1 arp ptype ip arp hlen 6 arp plen 4 \
iifname . ether saddr . arp saddr ip @pins iifname . arp saddr ether . arp saddr ip @pins goto questions
        ether type ip iifname . ether saddr . ip saddr @pins goto ipv4
    }}
    chain questions {{
        arp daddr ip {own} accept
        arp saddr ip . arp daddr ip @peers accept
    }}
    chain ipv4 {{
        ip daddr {own} accept
        ip saddr . ip daddr @peers accept
        ip daddr {guests} drop
        accept
    }}
    chain between {{ type filter hook forward priority -200; policy drop; }}
}}
table inet banger {{
    set closed {{ type ipv4_addr; flags interval; }}
    set outward {{ type ipv4_addr; }}
    set peers {{ type ipv4_addr . ipv4_addr; }}
    chain input {{
        type filter hook input priority 0; policy drop;
        ct state established,related accept
        iifname {bridge} icmp type echo-request accept
        iifname {bridge} ip daddr {names} udp dport 53 accept
        iifname {bridge} meta nfproto ipv4 reject with icmpx type admin-prohibited
        iifname {uplink} meta l4proto tcp reject with tcp reset
    }}
    chain forward {{
        type filter hook forward priority 0; policy drop;
        ct state invalid drop
        iifname {bridge} oifname {bridge} ip saddr . ip daddr @peers accept
{from_host}        iifname {bridge} ip saddr != @outward tcp flags & (syn | ack) != syn reject with tcp reset
        iifname {bridge} ip saddr != @outward reject with icmpx type admin-prohibited
        oifname {bridge} ip daddr != @outward meta l4proto tcp reject with tcp reset
        oifname {bridge} ip daddr != @outward drop
        iifname {bridge} oifname {uplink} ip daddr {uplink_dns} udp dport 53 accept
        iifname {bridge} oifname {uplink} ip daddr {uplink_dns} tcp dport 53 accept
        iifname {bridge} ip daddr @closed reject with icmpx type admin-prohibited
        iifname {bridge} oifname {uplink} meta nfproto ipv4 accept
        iifname {uplink} oifname {bridge} ct state established,related accept
    }}
    chain output {{
        type filter hook output priority 0; policy accept;
        meta nfproto ipv6 drop
        icmp type redirect drop
    }}
}}
table ip banger {{
    chain names {{
        type nat hook prerouting priority -100; policy accept;
        iifname {bridge} ip daddr {dns} udp dport 53 dnat to {uplink_dns}
        iifname {bridge} ip daddr {dns} tcp dport 53 dnat to {uplink_dns}
    }}
    chain source {{
        type nat hook postrouting priority 100; policy accept;
{masquerade}    }}
}}
"""

Network = tuple[str, int]
Pair = tuple[str, str]
"""Who may speak to whom, by address: one direction of two that come together."""


@dataclass(frozen=True, slots=True, order=True)
class Pin:
    """What a guest may be: the name of its TAP, its MAC and its IPv4 address; and whether it may speak to the world outside."""

    tap: str
    mac: str
    ip: str
    outward: bool = False

    @classmethod
    def of(cls, lease: Lease, *, outward: bool) -> Pin:
        """The pin of a lease."""
        return cls(tap_name(lease), lease.mac, lease.ip, outward)

    def fits(self, lease: Lease) -> bool:
        """Whether it is the pin of this lease."""
        return (self.tap, self.mac, self.ip) == (tap_name(lease), lease.mac, lease.ip)

    @property
    def element(self) -> str:
        """As an element of the set."""
        return f'"{self.tap}" . {self.mac} . {self.ip}'


def ruleset(
    plan: NetworkPlan, pins: Iterable[Pin], host: Iterable[Network], peers: Iterable[Pair] = ()
) -> str:
    """The whole filter, in place of any earlier one. ``host``: the host's own (address, prefix length) pairs."""
    bridge, uplink = f'"{BRIDGE}"', f'"{UPLINK}"'
    routed = _FROM_HOST.format(uplink=uplink, bridge=bridge, host=plan.uplink_gateway)
    rules = _RULES.format(
        own=f"{{ {plan.gateway}, {plan.dns}, {plan.names} }}",
        names=plan.names,
        guests=plan.guests,
        dns=plan.dns,
        uplink_dns=plan.uplink_dns,
        bridge=bridge,
        uplink=uplink,
        from_host=routed if plan.routed else "",
        masquerade="" if plan.routed else _MASQUERADE.format(uplink=uplink),
    )
    fresh = "".join(
        f"table {family} {TABLE}\ndelete table {family} {TABLE}\n"
        for family in ("bridge", "inet", "ip")
    )
    return fresh + rules + pin(pins) + let_speak(peers) + close_networks(plan, host)


def pin(pins: Iterable[Pin]) -> str:
    """Let guests speak as what they are; idempotent."""
    found = set(pins)
    return _elements("add", found) + _outward("add", {each for each in found if each.outward})


def unpin(pins: Iterable[Pin]) -> str:
    """Take the pins back; adding first makes it idempotent."""
    found = set(pins)
    return "".join(_elements(verb, found) + _outward(verb, found) for verb in ("add", "delete"))


def let_out(each: Pin) -> str:
    """Let a pinned guest speak to the world outside; idempotent."""
    return _outward("add", {each})


def keep_in(each: Pin) -> str:
    """Let it speak to its gateway only; adding first makes it idempotent."""
    return _outward("add", {each}) + _outward("delete", {each})


def let_speak(pairs: Iterable[Pair]) -> str:
    """Let guests reach each other; idempotent."""
    return _peers("add", pairs)


def keep_apart(pairs: Collection[Pair]) -> str:
    """Not any more; adding first makes it idempotent."""
    return _peers("add", pairs) + _peers("delete", pairs)


def close_networks(plan: NetworkPlan, host: Iterable[Network]) -> str:
    """Close the host's networks, and what is always closed, instead of what was."""
    listed = ", ".join(str(network) for network in closed_networks(plan, host))
    return f"flush set inet {TABLE} closed\nadd element inet {TABLE} closed {{ {listed} }}\n"


def closed_networks(plan: NetworkPlan, host: Iterable[Network]) -> list[ipaddress.IPv4Network]:
    """What guests may not reach, merged and sorted."""
    texts = [*NEVER, plan.guests, plan.uplink, *(f"{address}/{length}" for address, length in host)]
    networks = [ipaddress.IPv4Network(text, strict=False) for text in texts]
    return sorted(ipaddress.collapse_addresses(networks))


def pins_of(elements: Sequence[object], outward: Sequence[object]) -> set[Pin]:
    """The pins in nft's JSON listings of the two sets; ValueError if they are not ours."""
    found = set()
    for element in elements:
        tap, mac, ip = _parts(element, 3, "a pin")
        found.add(Pin(tap, mac, ip, ip in outward))
    return found


def peers_of(elements: Iterable[object]) -> set[Pair]:
    """The pairs in nft's JSON listing of the set; ValueError if they are not ours."""
    found = set()
    for element in elements:
        one, other = _parts(element, 2, "a pair")
        found.add((one, other))
    return found


def _parts(element: object, count: int, what: str) -> list[str]:
    parts = element.get("concat") if isinstance(element, dict) else None
    if not isinstance(parts, list) or len(parts) != count:
        raise ValueError(f"not {what}: {element!r}")
    return [str(part) for part in parts]


def _elements(verb: str, pins: Iterable[Pin]) -> str:
    listed = ", ".join(each.element for each in sorted(set(pins)))
    return f"{verb} element bridge {TABLE} {PINS} {{ {listed} }}\n" if listed else ""


def _outward(verb: str, pins: Iterable[Pin]) -> str:
    listed = ", ".join(sorted({each.ip for each in pins}, key=ipaddress.IPv4Address))
    return f"{verb} element inet {TABLE} {OUTWARD} {{ {listed} }}\n" if listed else ""


def _peers(verb: str, pairs: Iterable[Pair]) -> str:
    listed = ", ".join(f"{one} . {other}" for one, other in sorted(set(pairs)))
    return "".join(
        f"{verb} element {family} {TABLE} {PEERS} {{ {listed} }}\n" if listed else ""
        for family in ("bridge", "inet")
    )
