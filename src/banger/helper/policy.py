"""Who may ask for what, and how often: pure but for the clock that is passed in.

The kernel says who calls (SO_PEERCRED, SO_PEERGROUPS), as it was when the connection was made; nothing in a request is believed about that.
"""

from __future__ import annotations

import socket
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from banger.model.bucket import Buckets
from banger.model.errors import RefusedError
from banger.wire.helper import TOO_OFTEN

MAX_CONNECTIONS: Final = 64
MAX_CONNECTIONS_OF_USER: Final = 8
BURST: Final = 40
PER_S: Final = 10.0
_SO_PEERGROUPS: Final = 59  # asm-generic/socket.h
_MAX_GROUPS_BYTES: Final = 1024  # 256 groups; who has more cannot be told, and is not let in


@dataclass(frozen=True, slots=True)
class Caller:
    """The process at the other end when it connected."""

    pid: int
    uid: int
    groups: frozenset[int]


def caller_of(connection: socket.socket) -> Caller:
    """Who the kernel says has connected."""
    pid, uid, gid = struct.unpack(
        "=iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    )
    packed = connection.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, _MAX_GROUPS_BYTES)
    groups = struct.unpack(f"={len(packed) // 4}I", packed)
    return Caller(pid, uid, frozenset((gid, *groups)))


@dataclass(slots=True)
class Policy:
    """Root and the members of group ``gid`` may call (None: only root), each user within bounds. ``now_s`` is a monotonic clock."""

    gid: int | None
    now_s: Callable[[], float]
    _open: Counter[int] = field(default_factory=Counter)
    _buckets: Buckets = field(default_factory=lambda: Buckets(BURST, PER_S))

    def admit(self, caller: Caller) -> str:
        """Why ``caller`` may not connect; empty if it may, and then `leave` must follow."""
        if caller.uid != 0 and (self.gid is None or self.gid not in caller.groups):
            return "not root, nor a member of the group"
        if caller.uid != 0 and self._open.total() >= MAX_CONNECTIONS:
            return "too many connections"
        if self._open[caller.uid] >= MAX_CONNECTIONS_OF_USER:
            return "too many connections of this user"
        self._open[caller.uid] += 1
        return ""

    def leave(self, caller: Caller) -> None:
        """A connection that was admitted has ended."""
        self._open[caller.uid] -= 1
        if self._open[caller.uid] <= 0:
            del self._open[caller.uid]

    def count_request(self, caller: Caller) -> None:
        """RefusedError if this user asks too often. Root is counted too: a loop of root's is as tiring as any."""
        if not self._buckets.take(caller.uid, self.now_s()):
            raise RefusedError(
                f"user {caller.uid} {TOO_OFTEN}",
                detail=f"{BURST} requests at once, then {PER_S:g} a second",
                hint="wait a second, then try again",
            )
