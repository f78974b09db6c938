"""Names of peers for guests: one socket in the network's namespace, answered by the daemon.

It answers for the zone ``banger`` alone, to each guest for itself and those it reaches, and refuses everything else, so that a guest's resolver
asks its next name server. While no daemon runs nothing listens, the kernel says so at once, and the resolver goes on in the same way.

A guest that asks without end is answered `PER_S` times a second and told about: the rest of its questions is dropped unread.
"""

from __future__ import annotations

import asyncio
import functools
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress

from banger.model.bucket import Buckets

PeerLookup = Callable[[str, str], Sequence[str] | None]
"""The addresses that the guest with this address may know of the VM with this name or id; None if there is none."""

Flooded = Callable[[str], None]
"""Told that the guest with this address asks too often; not more than once in `TELL_S`."""

PORT = 53
BURST = 200
PER_S = 50.0
TELL_S = 10.0
_DATAGRAM_BYTES = 2048
_AT_ONCE = 32


class GuestNames:
    """Serves ``lookup`` on ``opened``, a bound non-blocking UDP socket that is this object's from now on. Needs a running event loop."""

    def __init__(
        self, opened: socket.socket, lookup: PeerLookup, flooded: Flooded | None = None
    ) -> None:
        self._opened = opened
        self._lookup = lookup
        self._flooded = flooded
        self._asked = Buckets(BURST, PER_S)
        self._told = Buckets(1, 1 / TELL_S)
        self._loop = asyncio.get_running_loop()
        self._loop.add_reader(opened, self._heard)

    def _heard(self) -> None:
        from banger.network.names import answer  # noqa: PLC0415  dnspython is for daemons whose guests ask

        with suppress(OSError):  # nothing more, or a guest that is gone
            for _ in range(_AT_ONCE):
                data, peer = self._opened.recvfrom(_DATAGRAM_BYTES)
                if not self._asked.take(peer[0], self._loop.time()):
                    self._tell(peer[0])
                    continue
                said = answer(data, functools.partial(self._lookup, peer[0]))
                if said is not None:
                    self._opened.sendto(said, peer)

    def _tell(self, address: str) -> None:
        if self._flooded is not None and self._told.take(address, self._loop.time()):
            self._flooded(address)

    def close(self) -> None:
        """Stop; idempotent."""
        if self._opened.fileno() >= 0:
            self._loop.remove_reader(self._opened)
            self._opened.close()
