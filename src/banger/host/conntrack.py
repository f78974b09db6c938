"""The kernel's table of connections in a network namespace: those of one address, forgotten.

By hand over a NETLINK_NETFILTER socket, also one that was opened in another namespace and passed to us, as in `banger.host.netlink`: the
kernel acts where the socket was opened. There is no other way than to list and to delete one by one; the kernel is asked to list those of
the address alone, and what older kernels list besides is left out here.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Iterator
from typing import Final, Self

from banger.host.netlink import NetlinkError, attribute, attributes, exchange, nested

_SUBSYSTEM = 1 << 8  # NFNL_SUBSYS_CTNETLINK
_GET, _DELETE = _SUBSYSTEM | 1, _SUBSYSTEM | 2
_REQUEST, _ACK, _DUMP = 0x1, 0x4, 0x300
_TUPLE_ORIG, _ID, _ZONE, _FILTER = 1, 12, 18, 25
_TUPLE_IP, _IP_V4_SRC = 1, 1
_FILTER_ORIG_FLAGS, _BY_SOURCE = 1, 1
_NESTED = 0x8000
_NFGENMSG = 4
_TIMEOUT_S = 5.0
MAX_ROUNDS: Final = 8
"""Those that come into being while others are deleted are deleted in the next round."""


class Connections:
    """The table behind ``channel``, a NETLINK_NETFILTER socket that this object owns from now on. Synchronous."""

    def __init__(self, channel: socket.socket) -> None:
        self._channel = channel
        self._channel.settimeout(_TIMEOUT_S)
        self._sequence = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def of(self, address: str) -> list[dict[int, bytes]]:
        """The attributes of every IPv4 connection that ``address`` began."""
        source = attribute(_IP_V4_SRC, socket.inet_aton(address))
        wanted = nested(_FILTER | _NESTED, attribute(_FILTER_ORIG_FLAGS, _BY_SOURCE))
        wanted += nested(_TUPLE_ORIG | _NESTED, nested(_TUPLE_IP | _NESTED, source))
        listed = self._ask(_GET, _REQUEST | _DUMP, wanted, f"list connections of {address}")
        found = [attributes(data[_NFGENMSG:]) for data in listed]
        return [each for each in found if _source(each) == socket.inet_aton(address)]

    def forget(self, address: str) -> int:
        """Delete them; how many there were."""
        count = 0
        for _ in range(MAX_ROUNDS):
            found = self.of(address)
            if not found:
                break
            count += sum(self._delete(each) for each in found)
        return count

    def _delete(self, connection: dict[int, bytes]) -> bool:
        """Delete this very connection; False if it was gone."""
        message = attribute(_TUPLE_ORIG | _NESTED, connection[_TUPLE_ORIG])
        message += b"".join(attribute(k, connection[k]) for k in (_ID, _ZONE) if k in connection)
        try:
            list(self._ask(_DELETE, _REQUEST | _ACK, message, "delete a connection"))
        except NetlinkError as error:
            if error.errno == errno.ENOENT:
                return False
            raise
        return True

    def _ask(self, kind: int, flags: int, message: bytes, what: str) -> Iterator[bytes]:
        self._sequence += 1
        body = struct.pack(">BBH", socket.AF_INET, 0, 0) + message
        return exchange(self._channel, self._sequence, kind, flags, body, what)


def _source(connection: dict[int, bytes]) -> bytes | None:
    pair = attributes(connection.get(_TUPLE_ORIG, b""))
    return attributes(pair.get(_TUPLE_IP, b"")).get(_IP_V4_SRC)
