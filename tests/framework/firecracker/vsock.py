"""Firecracker's vsock socket: ``CONNECT <port>``, ``OK <assigned port>``, then bytes; here over banger's mux to the guest's agent.

As in Firecracker nothing is accepted before the guest's driver is up (connections wait in the backlog), the CONNECT line must arrive in
one piece (what is not there at the first read is not waited for; 32 bytes at most), a port where nobody listens just closes, and so
does a line that is none. There is no half-close: who shuts down one direction ends both.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from banger.wire.mux import Mux, MuxStream
from tests.framework.firecracker.log import Log

MIN_LINE_BYTES, MAX_LINE_BYTES = 10, 32
FIRST_PORT = 1 << 30
MAX_CONNECTIONS = 1023
MAX_GUEST_PORT = 0xFFFF  # the mux's
CONNECT_S = 10.0
SYNCHRONISE_S = 5.0
CHUNK_BYTES = 65536


class Guest(Protocol):
    """What the bridge must know of the guest."""

    agent_path: str
    port_open: asyncio.Event

    async def wait_for_driver(self, device: str) -> None:
        """Return when the guest's driver has taken the device."""
        ...


class Bridge:
    """The listening socket and its connections; `run` for as long as the guest lives."""

    def __init__(self, listener: socket.socket, guest: Guest, device: str, log: Log) -> None:
        self._listener = listener
        self._guest = guest
        self._device = device
        self._log = log
        self._mux: Mux | None = None
        self._next = FIRST_PORT
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve until cancelled."""
        keeper = asyncio.create_task(self._keep_mux(), name="vsock mux")
        try:
            await self._guest.wait_for_driver(self._device)
            await self._accept()
        finally:
            for task in (keeper, *self._connections):
                task.cancel()
            await asyncio.gather(keeper, *self._connections, return_exceptions=True)

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            client, _ = await loop.sock_accept(self._listener)
            client.setblocking(False)
            if len(self._connections) >= MAX_CONNECTIONS:
                self._log("vsock: connection limit reached; refusing new host connection", "Warn")
                client.close()
                continue
            task = asyncio.create_task(self._serve(client), name="vsock connection")
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _keep_mux(self) -> None:
        """Whenever the agent has its port open there is a synchronised mux, or soon will be."""
        while True:
            await self._guest.port_open.wait()
            mux = None
            try:
                async with asyncio.timeout(SYNCHRONISE_S):
                    mux = await Mux.connect(Path(self._guest.agent_path))
            except (TimeoutError, OSError) as error:
                self._log(f"vsock: the agent does not answer: {error}", "Debug")
                await asyncio.sleep(0.1)
                continue
            self._mux = mux
            try:
                await mux.closed.wait()
            finally:
                self._mux = None
                await mux.close()

    async def _serve(self, client: socket.socket) -> None:
        stream = None
        try:
            port = await _requested_port(client)
            if port is None:
                self._log("vsock: error adding local-init connection: InvalidPortRequest")
                return
            stream = await self._open(port)
            if stream is not None:
                await self._pump(client, stream)
        except OSError as error:  # the client or the guest has gone
            self._log(f"vsock: {error}", "Debug")
        finally:
            client.close()
            if stream is not None:
                await stream.close()

    async def _open(self, port: int) -> MuxStream | None:
        """A stream to the guest's port; None if nobody listens there."""
        if self._mux is None or port > MAX_GUEST_PORT:
            return None
        with suppress(TimeoutError, ConnectionError):
            async with asyncio.timeout(CONNECT_S):
                return await self._mux.open(port)
        return None

    async def _pump(self, client: socket.socket, stream: MuxStream) -> None:
        loop = asyncio.get_running_loop()
        number, self._next = self._next, FIRST_PORT | ((self._next + 1) & (FIRST_PORT - 1))
        await loop.sock_sendall(client, b"OK %d\n" % number)

        async def to_host() -> None:
            while data := await stream.read(CHUNK_BYTES):
                await loop.sock_sendall(client, data)

        answers = asyncio.create_task(to_host())

        async def to_guest() -> None:
            while data := await loop.sock_recv(client, CHUNK_BYTES):
                try:
                    await stream.write(data)
                except (
                    ConnectionError
                ):  # the guest has closed: what it said before that still goes to the host
                    await answers
                    return

        both = {asyncio.create_task(to_guest()), answers}
        try:
            done, _ = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()
        finally:
            for task in both:
                task.cancel()
            await asyncio.gather(*both, return_exceptions=True)


async def _requested_port(client: socket.socket) -> int | None:
    """The port of the CONNECT line; None if what came is none."""
    line = await asyncio.get_running_loop().sock_recv(client, MIN_LINE_BYTES)
    while not line.endswith(b"\n") and len(line) < MAX_LINE_BYTES:
        try:
            byte = client.recv(1)
        except BlockingIOError:
            return None
        if not byte:
            return None
        line += byte
    words = line.decode(errors="replace").split()
    if len(words) < 2 or words[0].lower() != "connect":
        return None
    return _u32(words[1])


def _u32(text: str) -> int | None:
    digits = text.removeprefix("+")
    if not (digits.isascii() and digits.isdigit()) or int(digits) >= 1 << 32:
        return None
    return int(digits)
