"""Where guests' questions for names go in bridge mode: to the first name server of the host's that packets can be sent on to."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from pathlib import Path

PLACES = (
    Path("/etc/resolv.conf"),
    Path("/run/systemd/resolve/resolv.conf"),
    Path("/run/NetworkManager/no-stub-resolv.conf"),
)
"""The host's own list; then, where that names a resolver on the host's loopback, those whom such a resolver asks."""
_MAX_BYTES = 1 << 16


def find_resolver(places: Iterable[Path] = PLACES) -> str:
    """The IPv4 address of a name server that does not listen on loopback; empty if there is none."""
    for place in places:
        try:
            with place.open("rb") as file:
                text = file.read(_MAX_BYTES).decode(errors="replace")
        except OSError:
            continue
        if address := first_usable(text):
            return address
    return ""


def first_usable(text: str) -> str:
    """The first name server in the text of a resolv.conf that can be reached from elsewhere; empty if there is none."""
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            address = ipaddress.IPv4Address(words[1])
        except ValueError:  # IPv6, which guests do not have
            continue
        if not (address.is_loopback or address.is_unspecified or address.is_link_local):
            return str(address)
    return ""
