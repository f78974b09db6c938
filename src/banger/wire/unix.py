"""A Unix socket as a `banger.wire.http1.ByteStream`."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path

from banger.wire.http1 import StreamEndedError


class UnixStream:
    """A connection; `connect` makes one."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.why = ""

    async def read(self, limit: int = 65536) -> bytes:
        """Some bytes; empty at the end, also one that the peer did not mean."""
        try:
            return await self._reader.read(limit)
        except OSError as error:
            self.why = f"the connection broke: {error.strerror or error}"
            return b""

    async def line(self, limit_bytes: int) -> bytes:
        """The next line with its end; shorter than a line if the peer ends the stream, empty if it is too long."""
        try:
            line = await self._reader.readuntil(b"\n")
        except asyncio.IncompleteReadError as error:
            line = error.partial
        except (asyncio.LimitOverrunError, OSError):
            line = b""
        return line if len(line) <= limit_bytes else b""

    async def write(self, data: bytes) -> None:
        """Send all of ``data``; StreamEndedError if the peer has gone."""
        try:
            self._writer.write(data)
            await self._writer.drain()
        except OSError as error:
            raise StreamEndedError(self.why or "the connection was closed") from error

    async def close(self) -> None:
        """End both directions; idempotent."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()

    @property
    def ended(self) -> bool:
        """Whether the peer is known to have ended it: there may still be something to read."""
        return self._reader.at_eof() or self._writer.is_closing()

    def abort(self) -> None:
        """End both directions now, whatever was not sent yet."""
        self._writer.transport.abort()


async def connect(path: Path) -> UnixStream:
    """A connection to ``path``, or OSError: at once, also if more wait there already than the listener lets."""
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(0)
        # Not by the event loop: a full backlog is EAGAIN here, which the loop takes for a connection that will come.
        connection.connect(str(path))
        return UnixStream(*await asyncio.open_unix_connection(sock=connection))
    except BaseException:
        connection.close()
        raise
