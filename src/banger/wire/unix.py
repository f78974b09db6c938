"""A Unix socket as a `banger.wire.http1.ByteStream`.

On the socket itself, not by asyncio's streams: those end a connection at the first write that fails, and with it lose what the peer had
sent before it left. A command that is over before its input is would lose its output so.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from banger.wire.http1 import StreamEndedError

_CHUNK_BYTES = 65536
_T = TypeVar("_T")


class UnixStream:
    """A connection; `connect` makes one. One task reads at a time; writes wait for each other."""

    def __init__(self, connection: socket.socket) -> None:
        self._socket = connection
        self._early = b""  # what came behind a line
        self._writing = asyncio.Lock()
        self._users = 0  # operations that wait for the socket: the last one closes it
        self._closing = False
        self.why = ""

    async def read(self, limit: int = _CHUNK_BYTES) -> bytes:
        """Some bytes; empty at the end, also one that the peer did not mean."""
        if self._early:
            data, self._early = self._early[:limit], self._early[limit:]
            return data
        try:
            return await self._use(asyncio.get_running_loop().sock_recv(self._socket, limit))
        except OSError as error:
            self.why = f"the connection broke: {error.strerror or error}"
            return b""

    async def line(self, limit_bytes: int) -> bytes:
        """The next line with its end; shorter than a line if the peer ends the stream, empty if it is too long."""
        found = b""
        while b"\n" not in found:
            if len(found) > limit_bytes:
                return b""
            data = await self.read()
            if not data:
                return found
            found += data
        line, end, self._early = found.partition(b"\n")
        return line + end if len(line) < limit_bytes else b""

    async def write(self, data: bytes) -> None:
        """Send all of ``data``; StreamEndedError if the peer has gone. What it had sent can still be read."""
        try:
            async with self._writing:
                await self._use(asyncio.get_running_loop().sock_sendall(self._socket, data))
        except OSError as error:
            raise StreamEndedError(self.why or "the connection was closed") from error

    async def close(self) -> None:
        """End both directions; idempotent. What was written is the peer's."""
        self.abort()

    @property
    def ended(self) -> bool:
        """Whether the peer is known to have ended it, and nothing is left to read."""
        if self._closing:
            return True
        try:
            return not self._early and not self._socket.recv(1, socket.MSG_PEEK)
        except BlockingIOError:
            return False
        except OSError:
            return True

    def abort(self) -> None:
        """End both directions now; whoever waits for the connection is told that it has ended."""
        if self._closing:
            return
        self._closing = True
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        if self._users == 0:
            self._socket.close()

    async def _use(self, operation: Awaitable[_T]) -> _T:
        """Closing a socket under an operation of the loop would leave it waiting for ever."""
        self._users += 1
        try:
            return await operation
        finally:
            self._users -= 1
            if self._closing and self._users == 0:
                self._socket.close()


async def connect(path: Path) -> UnixStream:
    """A connection to ``path``, or OSError: at once, also if more wait there already than the listener lets."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.setblocking(False)  # noqa: FBT003  the standard library's signature
        # Not by the event loop: a full backlog is EAGAIN here, which the loop takes for a connection that will come.
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return UnixStream(connection)
