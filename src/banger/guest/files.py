"""Trees in and out of a guest as tar streams: over a bulk port where one is to be had, else in the request itself.

The request always travels on a stream of the channel, and so does its outcome: a transfer over a port has succeeded when the
agent says so there, whatever came through the port. As long as no byte of the tree has moved, a port that fails is no error.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

from banger.guest.answers import CALL_S, MAX_JSON_BYTES, mapping, refusal, within
from banger.guest.bulk import HEADER, BulkLostError, BulkPort, BulkPorts
from banger.wire.http1 import ByteStream, Exchange, HttpError, StreamEndedError

IDLE_S = 120.0
MARK_S = 5.0
_LAST_WORD_S = 1.0
_NO_PORT = 409
_GOT_ALL = 204
_Outcome = tuple[int, object]


class FileTransfers:
    """Transfers of one guest. ``open_stream`` gives a stream to its agent, ``headers`` what every request carries."""

    def __init__(
        self,
        ports: BulkPorts,
        open_stream: Callable[[], Awaitable[ByteStream]],
        headers: Callable[[], Mapping[str, str]],
    ) -> None:
        self._ports = ports
        self._open_stream = open_stream
        self._headers = headers

    @asynccontextmanager
    async def _exchange(self, what: str) -> AsyncIterator[Exchange]:
        async with within(CALL_S, what):
            stream = await self._open_stream()
        try:
            yield Exchange(stream)
        finally:
            await stream.close()

    # Out of the guest

    async def get(self, path: str) -> AsyncIterator[bytes]:
        """A tar stream of ``path``; each piece has ``IDLE_S`` seconds. Ends early only with an error."""
        with self._ports.take() as port:
            async for chunk in self._get(path, port):
                yield chunk

    async def _get(self, path: str, port: BulkPort | None) -> AsyncIterator[bytes]:
        what = f"GET {path}"
        async with self._exchange(what) as exchange:
            offer = port.header if port is not None else {}
            async with within(IDLE_S, what):
                await exchange.send("GET", _target(path), {**self._headers(), **offer})
                status = await exchange.status()
                if status != 200:
                    raise refusal(status, await exchange.json(MAX_JSON_BYTES), what)
            if port is None or HEADER.lower() not in exchange.headers:
                async for chunk in _body_pieces(exchange, what):
                    yield chunk
                return
            if await _is_heard(port):
                async for chunk in _port_pieces(exchange, port, what):
                    yield chunk
                return
        async for chunk in self._get(path, None):
            yield chunk

    # Into the guest

    async def put(self, path: str, tar: AsyncIterator[bytes]) -> None:
        """Unpack ``tar`` into the directory ``path``; returns when all of it is there. What ``tar`` raises is raised."""
        what = f"PUT {path}"
        with self._ports.take() as port:
            if port is not None and await self._put_over_port(port, path, tar):
                return
        async with self._exchange(what) as exchange:
            sending = asyncio.ensure_future(
                exchange.send("PUT", _target(path), self._headers(), tar)
            )
            status, answer = await _outcome(sending, _answer(exchange), what)
        if status >= 300:
            raise refusal(status, answer, what)

    async def _put_over_port(self, port: BulkPort, path: str, tar: AsyncIterator[bytes]) -> bool:
        """Whether the agent has taken the port; then the transfer is over."""
        what = f"PUT {path}"
        async with self._exchange(what) as exchange:
            async with within(IDLE_S, what):
                try:
                    await port.send_mark()
                except OSError:
                    return False
                await exchange.send("PUT", _target(path), {**self._headers(), **port.header})
                status = await exchange.status()
                if status == _NO_PORT:
                    return False
                if status != 200 or HEADER.lower() not in exchange.headers:
                    raise refusal(status, await exchange.json(MAX_JSON_BYTES), what)
            sending = asyncio.ensure_future(port.send(tar, IDLE_S))
            status, answer = await _outcome(sending, _late_answer(exchange), what)
        if status != _GOT_ALL:
            raise refusal(status, answer, what)
        return True


def _target(path: str) -> str:
    return f"/files?path={quote(path, errors='surrogateescape')}"


async def _body_pieces(exchange: Exchange, what: str) -> AsyncIterator[bytes]:
    body = exchange.body()
    while True:
        async with within(IDLE_S, what):
            chunk = await anext(body, b"")
        if not chunk:
            return
        yield chunk


async def _is_heard(port: BulkPort) -> bool:
    """Whether the agent's mark comes out of the port: another client may have it, of whom we know nothing."""
    try:
        async with asyncio.timeout(MARK_S):
            await port.find_mark()
    except OSError:  # TimeoutError is one
        return False
    return True


async def _port_pieces(exchange: Exchange, port: BulkPort, what: str) -> AsyncIterator[bytes]:
    """Blocks from the port until the empty one, and then the answer's own end: without it something went wrong in the guest."""
    ending = asyncio.ensure_future(exchange.finish())
    ending.add_done_callback(lambda done: None if _went_well(done) else port.abort())
    try:
        while True:
            async with within(IDLE_S, what):
                try:
                    block = await port.block()
                except BulkLostError:
                    if ending.done():
                        ending.result()  # it says more
                    raise
                if not block:
                    await ending
                    return
            yield block
    finally:
        ending.cancel()
        await asyncio.wait({ending})


def _went_well(done: asyncio.Future[Any]) -> bool:
    return not done.cancelled() and done.exception() is None


async def _answer(exchange: Exchange) -> _Outcome:
    status = await exchange.status()
    return status, None if status == _GOT_ALL else await exchange.json(MAX_JSON_BYTES)


async def _late_answer(exchange: Exchange) -> _Outcome:
    """An outcome that was not known yet when the answer began."""
    said = mapping(await exchange.json(MAX_JSON_BYTES))
    status = said.get("status")
    return status if isinstance(status, int) else 500, said.get("error")


async def _outcome(
    sending: asyncio.Future[None], answer: Coroutine[Any, Any, _Outcome], what: str
) -> _Outcome:
    """The agent's answer, which comes before all is sent if it refuses; ``sending`` is over afterwards."""
    answering = asyncio.ensure_future(answer)
    both: set[asyncio.Future[Any]] = {sending, answering}
    try:
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            await _sent(sending, answering, what)
        async with within(IDLE_S, what):
            status, said = await answering
            if status < 300:
                await asyncio.wait({sending}, timeout=CALL_S)
                if not (sending.done() and _went_well(sending)):
                    raise HttpError("the guest's agent said that it has all, before all was sent")
        return status, said
    finally:
        for future in both:
            future.cancel()
        await asyncio.wait(both)


async def _sent(
    sending: asyncio.Future[None], answering: asyncio.Future[_Outcome], what: str
) -> None:
    """Return if all was sent; if the way to the guest broke, wait a moment for the agent to say why."""
    if isinstance(sending.exception(), BulkLostError | StreamEndedError):
        await asyncio.wait({answering}, timeout=_LAST_WORD_S)
        if answering.done():
            return
        async with within(IDLE_S, what):
            sending.result()
    sending.result()
