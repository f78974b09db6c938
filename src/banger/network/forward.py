"""Forwards: a loopback port of the host that leads to a port of a guest, relayed by the daemon over a socket into the namespace."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from banger.model.errors import BangerError, HostLacksError, RefusedError

log = logging.getLogger(__name__)
Dial = Callable[[], Awaitable[socket.socket]]
CHUNK_BYTES = 256 * 1024
MAX_CONNECTIONS = 256
DIAL_S = 10.0


class Relays:
    """See `engine.ports.Relays`."""

    def __init__(self) -> None:
        self._ports: dict[int, _Relay] = {}

    @property
    def ports(self) -> list[int]:
        """The ports that are listened on."""
        return sorted(self._ports)

    async def add(self, host_port: int, dial: Dial) -> int:
        """Listen on 127.0.0.1:``host_port``; the real port."""
        listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(("127.0.0.1", host_port))
            listener.listen(128)
            listener.setblocking(False)  # noqa: FBT003  the standard library's signature
        except OSError as error:
            listener.close()
            if error.errno == errno.EADDRINUSE:
                raise RefusedError(
                    f"port {host_port} of 127.0.0.1 is taken",
                    hint=f"see who has it: ss -tlnp 'sport = :{host_port}'",
                ) from error
            raise HostLacksError(
                f"cannot listen on port {host_port}",
                detail=str(error),
                hint="choose a port above 1023",
            ) from error
        port = int(listener.getsockname()[1])
        self._ports[port] = _Relay(listener, dial)
        return port

    async def remove(self, host_port: int) -> None:
        """Stop listening and end its connections."""
        relay = self._ports.pop(host_port, None)
        if relay is not None:
            await relay.close()

    async def close(self) -> None:
        """Remove all."""
        for port in list(self._ports):
            await self.remove(port)


class _Relay:
    def __init__(self, listener: socket.socket, dial: Dial) -> None:
        self._listener = listener
        self._dial = dial
        self._connections: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._accept(), name=f"relay {listener.getsockname()[1]}")

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, or the client has gone already
                log.warning("relay: %s", error)
                await asyncio.sleep(0.1)
                continue
            if len(self._connections) >= MAX_CONNECTIONS:
                client.close()
                continue
            task = asyncio.create_task(self._serve(client))
            self._connections.add(task)
            task.add_done_callback(self._connections.discard)

    async def _serve(self, client: socket.socket) -> None:
        with client:
            try:
                async with asyncio.timeout(DIAL_S):
                    guest = await self._dial()
            except (OSError, BangerError) as error:
                log.info("relay: the guest cannot be reached: %s", error)
                return
            with guest:
                client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await _both_ways(client, guest)

    async def close(self) -> None:
        for task in (self._task, *self._connections):
            task.cancel()
        await asyncio.wait({self._task, *self._connections})
        self._listener.close()


async def _both_ways(one: socket.socket, other: socket.socket) -> None:
    """Relay until both directions have ended; the end of one is passed on as such (shutdown), as TCP has it."""
    tasks = {asyncio.create_task(_copy(one, other)), asyncio.create_task(_copy(other, one))}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        for task in done:
            task.exception()  # a reset of one side ends both: nothing else is to be said
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _copy(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    buffer = memoryview(bytearray(CHUNK_BYTES))
    while size := await loop.sock_recv_into(source, buffer):
        await loop.sock_sendall(target, buffer[:size])
    with suppress(OSError):
        target.shutdown(socket.SHUT_WR)
