"""Forwards: a loopback port of the host that leads to a port of a guest, relayed by the daemon over a socket into the namespace.

TCP is carried here, UDP in `banger.network.datagrams`.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress

from banger.model.errors import BangerError, HostLacksError, RefusedError
from banger.model.spec import ForwardProtocol, suffix
from banger.network.datagrams import Datagrams

log = logging.getLogger(__name__)

Dial = Callable[[], Awaitable[socket.socket]]
CHUNK_BYTES = 128 * 1024
TURN_BYTES = 4 << 20  # after so much in one go others have their turn
MAX_CONNECTIONS = 256
DIAL_S = 15.0
SILENCE_S = 10.0
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 60), (socket.TCP_KEEPINTVL, 15), (socket.TCP_KEEPCNT, 4))


class Relays:
    """See `engine.ports.Relays`. Each port relays up to ``max_connections`` connections or flows at a time.

    More connections wait in the kernel's queue; a new flow takes the place of the one that was silent longest.
    """

    def __init__(self, *, max_connections: int = MAX_CONNECTIONS) -> None:
        self._max_connections = max_connections
        self._ports: dict[tuple[ForwardProtocol, int], _Relay | Datagrams] = {}

    @property
    def ports(self) -> list[int]:
        """The ports that are listened on."""
        return sorted(port for _, port in self._ports)

    def open(self) -> frozenset[tuple[ForwardProtocol, int]]:
        """What is listened on."""
        return frozenset(self._ports)

    async def add(
        self, host_port: int, dial: Dial, *, protocol: ForwardProtocol = ForwardProtocol.TCP
    ) -> int:
        """Listen on 127.0.0.1:``host_port`` (0: any free one) and relay each connection, or each client's datagrams, to ``dial()``.

        Returns the real port. RefusedError if it is taken, HostLacksError if we may not have it.
        """
        listener = listen(host_port, protocol)
        port = int(listener.getsockname()[1])
        make = _Relay if protocol is ForwardProtocol.TCP else Datagrams
        self._ports[protocol, port] = make(listener, dial, self._max_connections)
        return port

    def free_port(self, protocol: ForwardProtocol, host_port: int = 0) -> int:
        """A port that could be listened on now: ``host_port`` itself unless it is 0. Errors as of `add`."""
        with listen(host_port, protocol) as probe:
            return int(probe.getsockname()[1])

    async def remove(
        self, host_port: int, *, protocol: ForwardProtocol = ForwardProtocol.TCP
    ) -> None:
        """Stop listening and end its connections; idempotent."""
        relay = self._ports.pop((protocol, host_port), None)
        if relay is not None:
            await relay.close()

    async def close(self) -> None:
        """Remove all."""
        for protocol, port in list(self._ports):
            await self.remove(port, protocol=protocol)


def listen(port: int, protocol: ForwardProtocol) -> socket.socket:
    """A non-blocking socket that listens on 127.0.0.1; RefusedError, HostLacksError."""
    stream = protocol is ForwardProtocol.TCP
    kind = socket.SOCK_STREAM if stream else socket.SOCK_DGRAM
    listener = socket.socket(socket.AF_INET, kind | socket.SOCK_NONBLOCK)
    try:
        if stream:  # of UDP it would let two have the same port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        if stream:
            listener.listen(128)
    except OSError as error:
        listener.close()
        raise _not_ours(port, protocol, error) from error
    return listener


class _Relay:
    """One listening port. Owns ``listener``."""

    def __init__(self, listener: socket.socket, dial: Dial, max_connections: int) -> None:
        self._listener = listener
        self._dial = dial
        self._max_connections = max_connections
        self._connections: set[asyncio.Task[None]] = set()
        self._task = asyncio.create_task(self._accept(), name=f"relay {listener.getsockname()[1]}")

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            if len(self._connections) >= self._max_connections:
                await asyncio.wait(self._connections, return_when=asyncio.FIRST_COMPLETED)
                continue
            try:
                client, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, or the client has gone already
                log.warning("relay: %s", error)
                await asyncio.sleep(0.1)
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
                log.debug("relay: the guest cannot be reached: %s", error)
                return
            with guest:
                await _both_ways(client, guest)

    async def close(self) -> None:
        tasks = {self._task, *self._connections}
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        self._listener.close()


def _not_ours(port: int, protocol: ForwardProtocol, error: OSError) -> BangerError:
    shown = f"port {port}{suffix(protocol)}"
    if error.errno == errno.EADDRINUSE:
        letter = protocol[0]
        return RefusedError(
            f"{shown} of 127.0.0.1 is taken",
            detail="another program or VM listens there",
            hint=f"see who: ss -{letter}lnp 'sport = :{port}'",
        )
    return HostLacksError(
        f"{shown} of 127.0.0.1 cannot be had: {error.strerror}",
        hint="choose a port above 1023",
    )


async def _both_ways(client: socket.socket, guest: socket.socket) -> None:
    """Relay until both directions have ended, or one broke. The end of one is passed on as such (shutdown) between TCP sockets.

    Another kind of stream to the guest has no half-close: there the client's end waits until the guest has been silent for a while.
    """
    for end in (client, guest):
        if end.family == socket.AF_INET:
            _set_options(end)
    towards_guest, from_guest = _Direction(client, guest), _Direction(guest, client)
    outward = asyncio.create_task(towards_guest.carry())
    inward = asyncio.create_task(from_guest.carry())
    tasks = {outward, inward}
    try:
        if guest.family == socket.AF_INET:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION)
        else:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            await _silence(inward, from_guest)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        for task in tasks:
            if not task.cancelled():
                task.exception()  # a reset of one side ends both: there is nobody else to tell


def _set_options(end: socket.socket) -> None:
    end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    end.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in _KEEPALIVE:
        end.setsockopt(socket.IPPROTO_TCP, option, value)


async def _silence(task: asyncio.Task[None], direction: _Direction) -> None:
    """Return when ``task`` has ended, or has carried nothing for a while."""
    seen_bytes = -1
    while not task.done() and seen_bytes != direction.carried_bytes:
        seen_bytes = direction.carried_bytes
        await asyncio.wait({task}, timeout=SILENCE_S)


class _Direction:
    """Bytes from ``source`` to ``target``."""

    def __init__(self, source: socket.socket, target: socket.socket) -> None:
        self._source = source
        self._target = target
        self.carried_bytes = 0

    async def carry(self) -> None:
        """Carry bytes until ``source`` ends; at most one chunk is under way, so a slow reader slows the writer."""
        loop = asyncio.get_running_loop()
        buffer = memoryview(bytearray(CHUNK_BYTES))
        turn_bytes = 0
        while size := await loop.sock_recv_into(self._source, buffer):
            await loop.sock_sendall(self._target, buffer[:size])
            self.carried_bytes += size
            turn_bytes += size
            if turn_bytes >= TURN_BYTES:
                turn_bytes = 0
                await asyncio.sleep(0)
        if self._target.family == socket.AF_INET:
            with suppress(OSError):
                self._target.shutdown(socket.SHUT_WR)
