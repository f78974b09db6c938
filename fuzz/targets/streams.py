"""What a guest may say to the host: the answer to CONNECT, HTTP, its health, frames of a command, the mux, bulk transfers."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

from banger.api import schema
from banger.api.frames import MAX_PAYLOAD
from banger.daemon import guest_answers
from banger.guest import bulk as host_bulk
from banger.guest.answers import MAX_JSON_BYTES, mapping, refusal
from banger.guest.exec_session import AgentExec
from banger.model.errors import BangerError, GuestNotReadyError
from banger.wire import mux as host_mux
from banger.wire import vsock
from banger.wire.http1 import Exchange, HttpError, StreamEndedError
from banger.wire.mux import Mux, MuxClosedError, MuxStream
from banger.wire.unix import UnixStream
from fuzz.targets.peers import Filled, Sink, require, run


def connect(data: bytes) -> None:
    """A vsock device that says anything: the stream, or StreamEndedError; then an answer of HTTP, or HttpError."""
    run(_connect(data))


async def _connect(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        ours.setblocking(False)  # noqa: FBT003  the standard library's signature
        theirs.sendall(data)
        theirs.shutdown(socket.SHUT_WR)

        async def device(_path: Path) -> UnixStream:
            return UnixStream(ours)

        original, vsock.connect = vsock.connect, device  # type: ignore[attr-defined]
        try:
            stream = await vsock.connect_port(Path("/nonexistent"), 1024)
        except StreamEndedError:
            return
        finally:
            vsock.connect = original  # type: ignore[attr-defined]
        require(data.startswith(b"OK "), "a stream without an OK")
        try:
            await _converse(Exchange(stream), stream)
        finally:
            await stream.close()


async def _converse(exchange: Exchange, stream: Any) -> None:  # noqa: ANN401  any ByteStream
    with suppress(HttpError, ConnectionError):
        await exchange.send("GET", "/healthz", {})
        status = await exchange.status()
        if status == 101:
            await _frames(AgentExec(stream, exchange.leftover()))
            return
        said = await exchange.json(MAX_JSON_BYTES)
        with suppress(GuestNotReadyError):
            _use(said)
        refusal(status, said, "GET /healthz").what.encode("utf-8", "replace")
        exchange.renew()


async def _frames(session: AgentExec) -> None:
    async for kind, payload in session.frames():
        require(0 <= kind <= 255 and len(payload) <= MAX_PAYLOAD, "a frame that is none")


def _use(said: object) -> None:
    """As the daemon's handlers do."""
    if isinstance(said, list):
        for one in said:
            guest_answers.port(mapping(one), {})
        return
    guest_answers.health(mapping(said))
    guest_answers.fill_stats(
        schema.Stats(**dict.fromkeys(schema.Stats.__struct_fields__)), mapping(said)
    )


def answers(data: bytes) -> None:
    """Heads and bodies of an agent that says anything, in pieces of any size: values that were checked, or HttpError."""
    stream = Filled(data[1:], 1 + (data[0] if data else 0))
    run(_converse(Exchange(stream), stream))


def mux(data: bytes) -> None:
    """The host's end of the mux: every opener gets a stream or MuxClosedError, none keeps more than its window."""
    run(_mux(data))


async def _mux(data: bytes) -> None:
    reader = asyncio.StreamReader(limit=1 << 20)
    channel = Mux(reader, cast("Any", Sink()))
    openers = [asyncio.create_task(channel.open(port)) for port in (1024, 22, 4096)]
    await asyncio.sleep(0)
    reader.feed_data(data)
    reader.feed_eof()
    await channel._read()  # noqa: SLF001  `connect` would start it
    for done in await asyncio.gather(*openers, return_exceptions=True):
        if isinstance(done, MuxStream):
            require(done._buffered <= 2 * host_mux.WINDOW, "more is kept than the window")  # noqa: SLF001
            require(all(done._chunks), "frames without data are kept")  # noqa: SLF001
            while await done.read():
                pass
            await done.close()
        elif not isinstance(done, MuxClosedError):
            raise done
    require(not channel._streams, "streams outlive the channel")  # noqa: SLF001
    await _skip(data)


async def _skip(data: bytes) -> None:
    """The mark is found exactly where it is."""
    mark = host_mux.MAGIC + bytes(range(16))
    reader = asyncio.StreamReader()
    reader.feed_data(data + mark + b"rest")
    reader.feed_eof()
    await host_mux._skip_to(reader, mark)  # noqa: SLF001
    rest = await reader.read()
    require(rest.endswith(b"rest") and len(rest) <= len(data) + len(mark) + 4, "the mark was lost")


def bulk(data: bytes) -> None:
    """What comes out of a bulk port: blocks of the agreed size, or BulkLostError."""
    run(_bulk(data))


async def _bulk(data: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.setblocking(False)  # noqa: FBT003  the standard library's signature
        port = host_bulk.BulkPort(0, ours)
        mark = port._mark if data[:1] < b"\x80" else b""  # noqa: SLF001  whether there is one
        theirs.sendall(data[1:9] + mark + data[9:])
        theirs.shutdown(socket.SHUT_WR)
        with suppress(host_bulk.BulkLostError, BangerError):
            await port.find_mark()
            while block := await port.block():
                require(len(block) <= host_bulk.MAX_BLOCK_BYTES, "a block that is too long")
