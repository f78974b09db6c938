"""Runs inside new namespaces, started by `banger.host.namespaces`: makes what a network needs there, then becomes nft.

Says on stderr what could not be made. nft reads its transaction from stdin; everything ends with the process.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from banger.host.netlink import Route
from banger.host.tun import VNET_HEADER, open_tap


def main() -> None:
    """Make a bridge, a TAP that is an closed port of it, an address and a forwarding link; then ``exec`` argv[1:]."""
    with Route.here() as route:
        attempt(
            "a bridge cannot be made",
            lambda: route.add_bridge("br0", bytes.fromhex("02b400000000")),
        )
        attempt("/dev/net/tun cannot make a TAP", lambda: open_tap("tap0", flags=VNET_HEADER))
        attempt("a TAP cannot join a bridge", lambda: route.add_closed_port("br0", "tap0"))
        attempt("a link cannot be set up", lambda: route.set_link("br0", up=True, mtu=65520))
        attempt("IPv4 cannot be forwarded", lambda: route.forward_ipv4("br0"))
    os.execv(sys.argv[1], sys.argv[1:])  # noqa: S606  argv list, no shell


def attempt(what: str, effect: Callable[[], object]) -> None:
    """Run ``effect``; end with ``what`` and the kernel's reason if it fails."""
    try:
        effect()
    except OSError as error:
        sys.exit(f"{what}: {error.strerror or error}")
