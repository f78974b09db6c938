"""What other programs' firewalls do to forwarded packets: which of their chains would drop those of banger's links, and what lets them through.

In nftables a packet must pass every table, so that banger cannot open what another one closes: it says what is missing.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banger.host import nft
from banger.host.exec import run
from banger.model.errors import BangerError
from banger.network.uplinks.slots import LINK_STEM
from banger.network.uplinks.table import TABLE

_LEGACY = Path("/proc/thread-self/net/ip_tables_names")
_LEGACY_S = 5.0
_DIRECTIONS = ("iifname", "oifname")


@dataclass(frozen=True, slots=True)
class Obstacle:
    """A chain that drops what goes through banger's links, and the one command that mends it."""

    chain: str
    mend: str

    @property
    def sentence(self) -> str:
        """For people."""
        return f"{self.chain} drops what guests send through this host; to mend it: {self.mend}"


async def find_obstacles(chains: Iterable[Mapping[str, Any]]) -> list[Obstacle]:
    """Those among the host's nft ``chains``, and in iptables' older kind. A host whose firewall cannot be read has none that we know of."""
    found = []
    for chain in forward_chains(chains):
        rules = await nft.listing("rule", "table", chain["family"], chain["table"])
        if blocks(chain, rules):
            found.append(Obstacle(_name(chain), mend(chain, rules)))
    return found + await _legacy()


async def _legacy() -> list[Obstacle]:
    """The same of iptables' older kind, which nft does not list."""
    try:
        if "filter" not in _legacy_tables():
            return []
        done = await run(["iptables-legacy", "-S"], timeout_s=_LEGACY_S)
    except (OSError, BangerError):
        return []
    text = done.stdout.decode(errors="replace")
    if "-P FORWARD DROP" not in text or all(
        f"{option} {LINK_STEM}+" in text for option in ("-i", "-o")
    ):
        return []
    target = "DOCKER-USER" if "-N DOCKER-USER" in text else "FORWARD"
    return [Obstacle("iptables-legacy FORWARD", _iptables("iptables-legacy", target))]


def _legacy_tables() -> list[str]:
    return _LEGACY.read_text().split()


def forward_chains(chains: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The base chains of others that IPv4 packets pass when they are forwarded."""
    return [
        chain
        for chain in chains
        if chain.get("hook") == "forward"
        and chain.get("family") in {"ip", "inet"}
        and chain.get("table") != TABLE
    ]


def blocks(chain: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> bool:
    """Whether it ends in a drop, by its policy or by its last rule, and its table does not let banger's links through both ways."""
    own = [rule["expr"] for rule in rules if rule.get("chain") == chain["name"] and "expr" in rule]
    last: Sequence[Mapping[str, Any]] = next(
        (expr for expr in reversed(own) if _verdict(expr) is not None), []
    )
    closed = chain.get("policy") == "drop" or (
        _verdict(last) in {"drop", "reject"} and not any("match" in part for part in last)
    )
    return closed and not all(_lets_through(rules, direction) for direction in _DIRECTIONS)


def mend(chain: Mapping[str, Any], rules: Sequence[Mapping[str, Any]]) -> str:
    """One command line that lets banger's links through this chain."""
    if chain["table"] == "firewalld":
        return (
            f"sudo firewall-cmd --permanent --zone=trusted --add-interface={LINK_STEM}+"
            " && sudo firewall-cmd --reload"
        )
    if (chain["family"], chain["table"], chain["name"]) == ("ip", "filter", "FORWARD"):
        docker = any(rule.get("chain") == "DOCKER-USER" for rule in rules)
        return _iptables("iptables", "DOCKER-USER" if docker else "FORWARD")
    where = f"{chain['family']} {chain['table']} {chain['name']}"
    return " && ".join(
        f"sudo nft 'insert rule {where} {direction} \"{LINK_STEM}*\" accept'"
        for direction in _DIRECTIONS
    )


def _iptables(program: str, target: str) -> str:
    return " && ".join(
        f"sudo {program} -I {target} {option} {LINK_STEM}+ -j ACCEPT" for option in ("-i", "-o")
    )


def _name(chain: Mapping[str, Any]) -> str:
    return f"chain {chain['name']} of table {chain['family']} {chain['table']}"


def _verdict(expr: Sequence[Mapping[str, Any]]) -> str | None:
    return next(
        (key for part in expr for key in ("accept", "drop", "reject", "return") if key in part),
        None,
    )


def _lets_through(rules: Sequence[Mapping[str, Any]], direction: str) -> bool:
    """Whether some rule of the table accepts by a match of ``direction`` on the stem of our links' names."""
    wanted = {f"{LINK_STEM}*", f"{LINK_STEM}+"}
    for rule in rules:
        expr = rule.get("expr", [])
        for part in expr:
            match = part.get("match", {})
            left = match.get("left", {})
            key = left.get("meta", {}).get("key") if isinstance(left, dict) else None
            right = match.get("right")
            named = right if isinstance(right, str) else json.dumps(right)
            if key == direction and any(name in named for name in wanted):
                return _verdict(expr) in {"accept", None} or "goto" in json.dumps(expr)
    return False
