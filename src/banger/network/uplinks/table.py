"""The host's one nft table of banger's: pure text, the whole of it in one transaction a change.

It only takes away, and only from packets that come from or go to banger's own links: what it accepts, other tables may still drop.
Uplinks are elements of sets, never rules. Between two uplinks nothing passes; of the host a guest reaches nothing (but the name server that
the host itself asks, if that is one of the host's addresses); a source address that is not the uplink's own goes nowhere; nor does IPv6.
From the host only root and the user whose uplink it is reach its guests. What comes in at a link where banger had to switch forwarding
on, and belongs to nothing of banger's, is not routed: the host has become a router for its guests only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from banger.network.uplinks.resolvers import on_loopback
from banger.network.uplinks.slots import Slot

FAMILY: Final = "inet"
TABLE: Final = "banger_host"
NEVER: Final = "0.0.0.0/8, 127.0.0.0/8, 169.254.0.0/16, 224.0.0.0/4, 240.0.0.0/4"
_OWNER: Final = "made_by_banger_helper_"
_RELAYED: Final = "        ip daddr @gateways meta l4proto { tcp, udp } th dport 53 accept\n"
_RULES: Final = """\
table inet banger_host {{
    chain {owner} {{
    }}
    set links {{
        type ifname
{links}    }}
    set opened {{
        type ifname
{opened}    }}
    set sources {{
        type ifname . ipv4_addr
        flags interval
{sources}    }}
    set guests {{
        type ipv4_addr
        flags interval
{guests}    }}
    set gateways {{
        type ipv4_addr
{gateways}    }}
    set owners {{
        typeof oifname . meta skuid
{owners}    }}
    chain source {{
        type filter hook prerouting priority -300; policy accept;
        iifname != @links accept
        meta nfproto != ipv4 drop
        iifname . ip saddr != @sources drop
        ip daddr {{ {never} }} drop
    }}
    chain input {{
        type filter hook input priority -5; policy accept;
        iifname != @links accept
        ct state established,related accept
        ct original ip daddr @gateways ct status dnat meta l4proto {{ tcp, udp }} th dport 53 accept
{relayed}        drop
    }}
    chain forward {{
        type filter hook forward priority -5; policy accept;
        iifname @links oifname @links drop
        iifname @links ct state invalid drop
        iifname @links ip daddr @guests drop
        iifname @links accept
        oifname @links ct state established,related accept
        oifname @links drop
        iifname @opened ct state new ct status != dnat drop
    }}
    chain output {{
        type filter hook output priority -5; policy accept;
        oifname != @links accept
        meta nfproto != ipv4 drop
        ct state established,related accept
        meta skuid 0 accept
        oifname . meta skuid @owners accept
        meta l4proto icmp accept
        reject with icmpx admin-prohibited
    }}
    chain names {{
        type nat hook prerouting priority -100; policy accept;
{names}    }}
    chain outward {{
        type nat hook postrouting priority 100; policy accept;
        ip saddr @guests oifname != @links masquerade
    }}
}}
"""


@dataclass(frozen=True, slots=True)
class Uplink:
    """A slot in use, and whose it is."""

    slot: Slot
    uid: int


@dataclass(frozen=True, slots=True)
class Rules:
    """All that the table depends on. ``resolver``: where guests' questions go, empty if nowhere; ``opened``: links where the helper
    switched forwarding on; ``token``: the ledger's, by which the table is known to be ours.
    """

    token: str
    uplinks: tuple[Uplink, ...]
    resolver: str = ""
    opened: tuple[str, ...] = ()


def ruleset(rules: Rules) -> str:
    """The table in place of any earlier one; without uplinks none."""
    gone = f"table {FAMILY} {TABLE}\ndelete table {FAMILY} {TABLE}\n"
    if not rules.uplinks:
        return gone
    relayed = on_loopback(rules.resolver)
    slots = [uplink.slot for uplink in rules.uplinks]
    return gone + _RULES.format(
        owner=_OWNER + rules.token,
        links=_elements(_quoted(slot.link) for slot in slots),
        opened=_elements(map(_quoted, rules.opened)),
        sources=_elements(
            f"{_quoted(slot.link)} . {address}"
            for slot in slots
            for address in (slot.guests, slot.inside_address)
        ),
        guests=_elements(a for slot in slots for a in (slot.guests, slot.inside_address)),
        gateways=_elements(slot.host_address for slot in slots),
        owners=_elements(f"{_quoted(u.slot.link)} . {u.uid}" for u in rules.uplinks),
        never=NEVER,
        names="" if relayed else _names(rules.resolver),
        relayed=_RELAYED if relayed else "",
    )


def _names(resolver: str) -> str:
    if not resolver:
        return ""
    return "".join(
        f"        iifname @links ip daddr @gateways {kind} dport 53 dnat ip to {resolver}\n"
        for kind in ("udp", "tcp")
    )


def _elements(texts: Iterable[str]) -> str:
    listed = ", ".join(texts)
    return f"        elements = {{ {listed} }}\n" if listed else ""


def _quoted(name: str) -> str:
    return json.dumps(name)


def made_by(chains: Sequence[Any]) -> str | None:
    """The token of the table's maker in nft's JSON listing of all chains; empty if there is a table and it is not ours, None if there is none."""
    names = [
        str(each.get("name"))
        for each in chains
        if isinstance(each, dict) and (each.get("family"), each.get("table")) == (FAMILY, TABLE)
    ]
    for name in names:
        if name.startswith(_OWNER):
            return name.removeprefix(_OWNER)
    return "" if names else None
