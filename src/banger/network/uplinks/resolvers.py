"""Where guests' questions for names go in bridge mode: to the first name server of the host's that packets can be sent on to, else to the
one on the host's loopback (127/8), which only the host itself can ask (`relay`).
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable, Iterator
from pathlib import Path

PLACES = (
    Path("/etc/resolv.conf"),
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)
"""The host's own list; then, where that names a resolver on the host's loopback, those whom such a resolver asks."""
_MAX_BYTES = 1 << 16


def find_resolver(places: Iterable[Path] = PLACES) -> str:
    """The IPv4 address of a name server, if possible one that does not listen on loopback; empty if there is none."""
    texts = list(_read(places))
    found = (first(text, loopback=each) for each in (False, True) for text in texts)
    return next(filter(None, found), "")


def on_loopback(address: str) -> bool:
    """Whether a name server is one that packets cannot be sent on to."""
    return bool(address) and ipaddress.IPv4Address(address).is_loopback


def _read(places: Iterable[Path]) -> Iterator[str]:
    for place in places:
        try:
            with place.open("rb") as file:
                text = file.read(_MAX_BYTES).decode(errors="replace")
        except OSError:
            continue
        yield text


def first(text: str, *, loopback: bool = False) -> str:
    """The first name server in the text of a resolv.conf that is, or is not, on loopback; empty if there is none."""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.IPv4Address(words[1])
        except ValueError:  # IPv6, which guests do not have
            continue
        if address.is_loopback == loopback and not (
            address.is_unspecified or address.is_link_local
        ):
            return str(address)
    return ""
