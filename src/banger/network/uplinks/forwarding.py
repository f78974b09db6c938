"""Routing on the host, no more of it than guests need: links where it was off are written down, switched on, and off again at the end.

Where the administrator has switched all of it on (``net.ipv4.ip_forward``) nothing is left to do, nor to take back.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from banger.host.ledger import Ledger, Row
from banger.host.netlink import Link, NetlinkError, Route
from banger.network.uplinks.slots import LINK_STEM

KIND = "forwarding"
_ALL = Path("/proc/sys/net/ipv4/ip_forward")
_PLAIN = re.compile(r"[A-Za-z0-9_.:@-]{1,15}")
_ONE = "/proc/sys/net/ipv4/conf/{}/forwarding"


def wanted(links: dict[str, Link], routes: list[tuple[str, int, int]]) -> list[Link]:
    """The links that lead somewhere: those with a route, other than loopback and our own, and none whose name nft could misread."""
    leading = {number for _, _, number in routes}
    return [
        link
        for link in links.values()
        if link.index in leading
        and link.name != "lo"
        and not link.name.startswith(LINK_STEM)
        and _PLAIN.fullmatch(link.name)
    ]


def open_links(ledger: Ledger, route: Route, own: Iterable[str]) -> tuple[str, ...]:
    """Let replies come in wherever guests' packets may have gone out; the names of the links that are open by our doing.

    Our ``own`` links forward too, also after somebody has switched all forwarding off.
    """
    links = route.links()
    for name in own:
        if name in links and not links[name].forwards:
            route.forward_ipv4(name)
    if _all_on():
        for row in ledger.rows(KIND):
            ledger.strike(row)  # the administrator's now
        return ()
    rows = {row.key: row for row in ledger.rows(KIND)}
    for row in rows.values():
        link = links.get(row.key)
        if link is None or not _made_for(row, link):
            ledger.strike(row)
    for link in wanted(links, route.routes()):
        if not link.forwards:
            row = ledger.intend(KIND, link.name, 0, index=link.index)
            _switch(route, link.name, on=True)
            ledger.done(row)
    return tuple(sorted(row.key for row in ledger.rows(KIND)))


def close_links(ledger: Ledger, route: Route) -> None:
    """Take it back; idempotent."""
    links = route.links()
    for row in ledger.rows(KIND):
        link = links.get(row.key)
        if link is not None and _made_for(row, link) and not _all_on():
            _switch(route, link.name, on=False)
        ledger.strike(row)


def _made_for(row: Row, link: Link) -> bool:
    return row.this_boot and row.facts.get("index") == link.index


def _all_on() -> bool:
    return _ALL.read_text().strip() != "0"


def _switch(route: Route, name: str, *, on: bool) -> None:
    """By its file, which also switches off what a card may not do to packets that are routed; by netlink where that is read-only."""
    try:
        Path(_ONE.format(name)).write_text(f"{int(on)}\n")
    except OSError:
        try:
            route.switch_forwarding(name, on=on)
        except NetlinkError:
            if on or route.exists(name):
                raise
