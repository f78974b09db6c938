"""The host's own addresses, which guests may not reach: asked of the kernel, and told by it when they, or its nft tables, change."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable

from banger.host.netlink import ADDRESS_GROUPS, NETFILTER, NFTABLES_GROUP, Route
from banger.network.filter import Network

_SETTLE_S = 0.02  # addresses come in bursts
_EVENT_BYTES = 1 << 16


def host_networks() -> list[Network]:
    """What this process' network namespace answers to, as (address, prefix length), sorted; takes 0.2 ms."""
    with Route.here() as route:
        return route.local_networks()


class AddressWatch:
    """Calls ``changed`` soon after the host's addresses may have changed; costs nothing until then. Needs a running event loop."""

    def __init__(
        self,
        changed: Callable[[], None],
        *,
        groups: int = ADDRESS_GROUPS,
        channel: socket.socket | None = None,
        pause_s: float = 0.0,
    ) -> None:
        """``groups``: the kernel's multicast groups to listen to, as bits; ``channel``: a netlink socket of another kind or namespace, ours now;
        ``pause_s``: so long, at least, from one call to the next.
        """
        self._changed = changed
        self._pause_s = pause_s
        self._free_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._timer: asyncio.TimerHandle | None = None
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._channel = channel or socket.socket(socket.AF_NETLINK, kind, 0)
        self._channel.setblocking(False)  # noqa: FBT003  the standard library's signature
        self._channel.bind((0, groups))
        self._loop.add_reader(self._channel, self._heard)

    def _heard(self) -> None:
        try:
            while self._channel.recv(_EVENT_BYTES):
                pass
        except OSError:  # nothing more, or events were lost: either way look at the whole
            pass
        if self._timer is None:
            when_s = max(self._loop.time() + _SETTLE_S, self._free_s)
            self._timer = self._loop.call_at(when_s, self._settled)

    def _settled(self) -> None:
        self._timer = None
        self._free_s = self._loop.time() + self._pause_s
        self._changed()

    def close(self) -> None:
        """Stop; idempotent."""
        if self._timer is not None:
            self._timer.cancel()
        if self._channel.fileno() >= 0:
            self._loop.remove_reader(self._channel)
            self._channel.close()


def watch_nftables(changed: Callable[[], None], *, pause_s: float) -> AddressWatch:
    """As `AddressWatch`, of the transactions of nft in this namespace, our own too; needs CAP_NET_ADMIN, OSError without."""
    channel = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, NETFILTER)
    return AddressWatch(changed, groups=NFTABLES_GROUP, channel=channel, pause_s=pause_s)
