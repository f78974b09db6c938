"""What carries streams to a guest: a mux over virtio-serial, or a vsock device, which brings streams of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol
from weakref import WeakSet

from banger.guest.answers import AGENT_PORT, MAX_JSON_BYTES, refusal
from banger.wire import vsock
from banger.wire.http1 import ByteStream, Exchange, StreamEndedError
from banger.wire.mux import Mux
from banger.wire.unix import UnixStream

CONNECT_S = 10.0  # Firecracker itself gives up after 2 s, once the guest's driver is up; an emulated guest may need longer


class Channel(Protocol):
    """The way to one guest. Nothing is connected before the first stream; what broke is connected anew."""

    async def open(self, port: int) -> ByteStream:
        """A stream to ``port`` of the guest: 1024 is its agent, any other a TCP port on its loopback.

        OSError or HttpError if there is no way, or nobody listens; the caller sets the deadline.
        """
        ...

    async def close(self) -> None:
        """End all streams."""
        ...


class MuxChannel:
    """One mux over the Unix socket of a virtio-serial port, connected again when it broke."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mux: Mux | None = None
        self._lock = asyncio.Lock()

    async def open(self, port: int) -> ByteStream:
        """See `Channel.open`."""
        async with self._lock:
            if self._mux is None or self._mux.closed.is_set():
                self._mux = await Mux.connect(self._path)
            mux = self._mux
        return await mux.open(port)

    async def close(self) -> None:
        """End the mux and its streams."""
        mux, self._mux = self._mux, None
        if mux is not None:
            await mux.close()


class VsockChannel:
    """A vsock device: a connection a stream. Only the agent listens there; it leads on to TCP ports.

    ``headers`` is what the agent demands of every request.
    """

    def __init__(self, path: Path, headers: Callable[[], Mapping[str, str]]) -> None:
        self._path = path
        self._headers = headers
        self._streams: WeakSet[UnixStream] = WeakSet()

    async def open(self, port: int) -> ByteStream:
        """See `Channel.open`. A guest that does not even refuse within ``CONNECT_S`` is a TimeoutError."""
        async with asyncio.timeout(CONNECT_S):
            stream = await vsock.connect_port(self._path, AGENT_PORT)
        self._streams.add(stream)
        if port == AGENT_PORT:
            return stream
        try:
            return await self._lead_on(stream, port)
        except BaseException:
            stream.abort()
            raise

    async def _lead_on(self, stream: UnixStream, port: int) -> ByteStream:
        exchange = Exchange(stream)
        headers = {**self._headers(), "Connection": "Upgrade", "Upgrade": "banger-tcp"}
        await exchange.send("GET", f"/tcp?port={port}", headers)
        status = await exchange.status()
        if status != 101:
            refused = refusal(status, await exchange.json(MAX_JSON_BYTES), f"port {port}")
            raise StreamEndedError("\n".join(filter(None, (refused.what, refused.detail))))
        return UpgradedStream(stream, exchange.leftover())

    async def close(self) -> None:
        """End all streams."""
        for stream in list(self._streams):
            stream.abort()
            with suppress(OSError):
                await stream.close()


class UpgradedStream:
    """A stream after an upgrade: ``early`` came with the answer's head and is read first."""

    def __init__(self, stream: ByteStream, early: bytes) -> None:
        self._stream = stream
        self._early = early

    @property
    def why(self) -> str:
        """Why the peer has ended it, as far as it said so."""
        return self._stream.why

    async def read(self, limit: int = 65536) -> bytes:
        """Some bytes, empty at the end."""
        if self._early:
            data, self._early = self._early[:limit], self._early[limit:]
            return data
        return await self._stream.read(limit)

    async def write(self, data: bytes) -> None:
        """Send all of ``data``."""
        await self._stream.write(data)

    async def close(self) -> None:
        """End both directions."""
        await self._stream.close()
