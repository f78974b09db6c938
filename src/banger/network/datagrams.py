"""A forward of UDP: a loopback port of the host whose datagrams go to a port of a guest, and the guest's answers back to who asked.

UDP has no connections, so each client (address and port on the host) is a **flow** with a socket of its own into the namespace, connected to
the guest's port: the kernel lets only its answers in, and the guest tells clients apart. A flow ends when nothing has passed for a while.
Everything is bounded: flows of a port (the one that was silent longest makes room), datagrams that wait while a flow is opened, datagrams
that are carried before others have their turn. What finds no room is dropped, as UDP may be.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections import OrderedDict
from collections.abc import Awaitable, Callable

from banger.model.errors import BangerError

log = logging.getLogger(__name__)

Dial = Callable[[], Awaitable[socket.socket]]
Client = tuple[str, int]
MAX_FLOWS = 256
IDLE_S = 120.0  # RFC 4787: not under two minutes
FAILED_S = 1.0  # so long a flow that could not be opened drops what comes, before it is tried again
DIAL_S = 15.0
MAX_WAITING = 16  # of a flow
MAX_WAITING_BYTES = 1 << 20  # of a port
MAX_OPENING = 8  # at a time: each is a request to the holder
TURN = 64
MAX_BYTES = 65535
BUFFER_BYTES = 1 << 20


class Datagrams:
    """One port that is forwarded. Owns ``listener``, a bound non-blocking UDP socket; `dial` gives connected ones."""

    def __init__(
        self, listener: socket.socket, dial: Dial, max_flows: int, *, idle_s: float = IDLE_S
    ) -> None:
        self._listener = listener
        self._dial = dial
        self._max_flows = max_flows
        self._idle_s = idle_s
        self._loop = asyncio.get_running_loop()
        self._flows: OrderedDict[Client, _Flow] = (
            OrderedDict()
        )  # the one that spoke last at the end
        self.opening = asyncio.Semaphore(MAX_OPENING)
        self.waiting_bytes = 0
        self.dropped = 0
        _widen(listener)
        self._loop.add_reader(listener, self._heard)
        self._sweeper = asyncio.create_task(self._sweep(), name="udp relay")

    @property
    def flows(self) -> int:
        """How many clients it serves."""
        return len(self._flows)

    def _heard(self) -> None:
        for _ in range(TURN):
            try:
                data, client = self._listener.recvfrom(MAX_BYTES)
            except BlockingIOError:
                return
            except OSError as error:
                log.debug("udp relay: %s", error)
                return
            self._flow(client).send(data)

    def _flow(self, client: Client) -> _Flow:
        flow = self._flows.get(client)
        if flow is None:
            if len(self._flows) >= self._max_flows:
                _, eldest = self._flows.popitem(last=False)
                eldest.close()
            flow = self._flows[client] = _Flow(self, client, self._dial)
        self.touch(flow)
        return flow

    def touch(self, flow: _Flow) -> None:
        """Something has passed in this flow."""
        flow.used_at = self._loop.time()
        if self._flows.get(flow.client) is flow:
            self._flows.move_to_end(flow.client)

    def answer(self, data: bytes, client: Client) -> None:
        """Send a guest's answer to its client."""
        try:
            self._listener.sendto(data, client)
        except OSError as error:  # no room, or nobody there any more
            self.drop(error)

    def drop(self, why: object) -> None:
        """Count a datagram that was not carried."""
        self.dropped += 1
        log.debug("udp relay: a datagram was dropped: %s", why)

    def forget(self, flow: _Flow) -> None:
        """End a flow; its client's next datagram begins another."""
        if self._flows.get(flow.client) is flow:
            del self._flows[flow.client]
        flow.close()

    async def _sweep(self) -> None:
        """End flows that are silent; sleeps until the first of them can be."""
        while True:
            await asyncio.sleep(max(0.05, self._next_s()))
            now = self._loop.time()
            while self._flows and next(iter(self._flows.values())).used_at + self._idle_s <= now:
                _, flow = self._flows.popitem(last=False)
                flow.close()

    def _next_s(self) -> float:
        if not self._flows:
            return self._idle_s
        return next(iter(self._flows.values())).used_at + self._idle_s - self._loop.time()

    async def close(self) -> None:
        """Give the port back and end all flows."""
        self._sweeper.cancel()
        self._loop.remove_reader(self._listener)
        self._listener.close()
        openers = {self._sweeper}
        while self._flows:
            _, flow = self._flows.popitem()
            openers.add(flow.opener)
            flow.close()
        await asyncio.wait(openers)


class _Flow:
    """What one client says to the guest, and hears from it."""

    def __init__(self, port: Datagrams, client: Client, dial: Dial) -> None:
        self.client = client
        self.used_at = 0.0
        self._port = port
        self._loop = asyncio.get_running_loop()
        self._guest: socket.socket | None = None
        self._waiting: list[bytes] = []
        self._failed = self._closed = False
        self.opener = asyncio.create_task(self._open(dial), name="udp flow")

    async def _open(self, dial: Dial) -> None:
        try:
            async with asyncio.timeout(DIAL_S), self._port.opening:
                guest = await dial()
        except (OSError, BangerError) as error:
            log.debug("udp relay: the guest cannot be reached: %s", error)
            self._failed = True
            self._forget_waiting()
            self._loop.call_later(FAILED_S, self._port.forget, self)
            return
        if self._closed:
            guest.close()
            return
        _widen(guest)
        self._guest = guest
        self._loop.add_reader(guest, self._heard)
        waiting = list(self._waiting)
        self._forget_waiting()
        for data in waiting:
            self.send(data)

    def send(self, data: bytes) -> None:
        """Carry a datagram to the guest."""
        if self._guest is None:
            full = self._port.waiting_bytes + len(data) > MAX_WAITING_BYTES
            if self._failed or full or len(self._waiting) == MAX_WAITING:
                self._port.drop("the guest is not reached yet")
            else:
                self._waiting.append(data)
                self._port.waiting_bytes += len(data)
            return
        try:
            self._guest.send(data)
        except ConnectionRefusedError:  # the guest's answer to an earlier one: nobody listens there
            self._again(data)
        except OSError as error:  # no room, no route, too long
            self._port.drop(error)

    def _forget_waiting(self) -> None:
        self._port.waiting_bytes -= sum(map(len, self._waiting))
        self._waiting.clear()

    def _again(self, data: bytes) -> None:
        try:
            if self._guest is not None:
                self._guest.send(data)
        except OSError as error:
            self._port.drop(error)

    def _heard(self) -> None:
        for _ in range(TURN):
            if self._guest is None:
                return
            try:
                data = self._guest.recv(MAX_BYTES)
            except BlockingIOError:
                return
            except (
                OSError
            ) as error:  # refused, unreachable: an ICMP message, which the client cannot be sent
                log.debug("udp relay: %s", error)
                continue
            self._port.touch(self)
            self._port.answer(data, self.client)

    def close(self) -> None:
        """Let go; idempotent."""
        self._closed = True
        self.opener.cancel()
        self._forget_waiting()
        guest, self._guest = self._guest, None
        if guest is not None:
            self._loop.remove_reader(guest)
            guest.close()


def _widen(opened: socket.socket) -> None:
    """More room for bursts, as far as the host lets us."""
    for option in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        opened.setsockopt(socket.SOL_SOCKET, option, BUFFER_BYTES)
