"""Questions for names where the host's only resolver listens on its own loopback: carried there from the uplinks' gateways, and answers back.

Bytes are copied, never read. Bounded: so many questions at a time, each with a deadline, no connection for ever.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from contextlib import suppress

log = logging.getLogger(__name__)
PORT = 53
ANSWER_S = 5.0
TALK_S = 15.0
MAX_QUESTIONS = 128
MAX_TALKS = 32
_MAX_BYTES = 65536


class NameRelay:
    """Listens at ``address`` for UDP and TCP and asks ``resolver``. Make it with `open_relay`."""

    def __init__(self, udp: socket.socket, tcp: socket.socket, resolver: str) -> None:
        self._udp, self._tcp = udp, tcp
        self._resolver = (resolver, PORT)
        self._work: set[asyncio.Task[None]] = set()
        self._questions = self._talks = 0
        self._listeners = {
            asyncio.create_task(self._hear(), name="names by UDP"),
            asyncio.create_task(self._accept(), name="names by TCP"),
        }

    async def close(self) -> None:
        """Stop; idempotent."""
        tasks = self._listeners | self._work
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._udp.close()
        self._tcp.close()

    def _begin(self, task: asyncio.Task[None]) -> None:
        self._work.add(task)
        task.add_done_callback(self._work.discard)

    async def _hear(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                question, asker = await loop.sock_recvfrom(self._udp, _MAX_BYTES)
            except OSError:  # an earlier answer found nobody
                continue
            if self._questions < MAX_QUESTIONS:
                self._begin(asyncio.create_task(self._ask(question, asker)))

    async def _ask(self, question: bytes, asker: tuple[str, int]) -> None:
        loop = asyncio.get_running_loop()
        self._questions += 1
        try:
            with _socket(socket.SOCK_DGRAM) as upward, suppress(OSError):
                async with asyncio.timeout(ANSWER_S):
                    await loop.sock_connect(upward, self._resolver)
                    await loop.sock_sendall(upward, question)
                    answer = await loop.sock_recv(upward, _MAX_BYTES)
                    await loop.sock_sendto(self._udp, answer, asker)
        finally:
            self._questions -= 1

    async def _accept(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                client, _ = await loop.sock_accept(self._tcp)
            except OSError:
                await asyncio.sleep(0.1)
                continue
            if self._talks < MAX_TALKS:
                self._begin(asyncio.create_task(self._talk(client)))
            else:
                client.close()

    async def _talk(self, client: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        self._talks += 1
        try:
            with client, _socket(socket.SOCK_STREAM) as upward, suppress(OSError):
                async with asyncio.timeout(TALK_S):
                    await loop.sock_connect(upward, self._resolver)
                    both = {
                        asyncio.create_task(_copy(client, upward)),
                        asyncio.create_task(_copy(upward, client)),
                    }
                    try:
                        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for task in both:
                            task.cancel()
                        await asyncio.wait(both)
        finally:
            self._talks -= 1


async def _copy(source: socket.socket, target: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while data := await loop.sock_recv(source, _MAX_BYTES):
            await loop.sock_sendall(target, data)


def _socket(kind: int) -> socket.socket:
    return socket.socket(socket.AF_INET, kind | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)


def open_relay(address: str, resolver: str) -> NameRelay | None:
    """A relay at ``address``; None where the host's own resolver has port 53 of every address, and so answers there itself."""
    udp, tcp = _socket(socket.SOCK_DGRAM), _socket(socket.SOCK_STREAM)
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        for each in (udp, tcp):
            each.bind((address, PORT))
        tcp.listen(MAX_TALKS)
    except OSError as error:
        udp.close()
        tcp.close()
        if error.errno == errno.EADDRINUSE:
            log.info("names: port %d of %s is another resolver's", PORT, address)
            return None
        raise
    return NameRelay(udp, tcp, resolver)
