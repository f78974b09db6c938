"""The host's end of a vsock device that plays each way of answering."""

import asyncio
import contextlib
import socket

import pytest

from banger.wire import unix, vsock
from banger.wire.http1 import StreamEndedError


@contextlib.asynccontextmanager
async def device(directory, answer):
    """A device that reads a line and then does ``answer(reader, writer)``; its path and the lines that it got."""
    lines = []

    async def serve(reader, writer):
        lines.append(await reader.readuntil(b"\n"))
        await answer(reader, writer)
        writer.close()

    server = await asyncio.start_unix_server(serve, directory / "v.sock")
    try:
        yield directory / "v.sock", lines
    finally:
        server.close()


def saying(data):
    async def answer(_reader, writer):
        writer.write(data)

    return answer


async def test_the_port_is_named_and_what_follows_the_answer_is_the_streams(tmp_path):
    async with device(tmp_path, saying(b"OK 1073741824\nhello")) as (path, lines):
        stream = await vsock.connect_port(path, 1024)
        assert lines == [b"CONNECT 1024\n"]
        assert await stream.read() == b"hello"
        assert await stream.read() == b""
        await stream.close()


async def test_bytes_go_both_ways(tmp_path):
    async def echo(reader, writer):
        writer.write(b"OK 1\n")
        while data := await reader.read(1000):
            writer.write(data.upper())

    async with device(tmp_path, echo) as (path, _):
        stream = await vsock.connect_port(path, 1)
        await stream.write(b"abc")
        assert await stream.read() == b"ABC"
        await stream.close()
        await stream.close()


async def test_a_port_that_nobody_listens_on_is_said_to_be_so(tmp_path):
    async with device(tmp_path, saying(b"")) as (path, _):
        with pytest.raises(StreamEndedError, match="nobody listens on that port of the guest"):
            await vsock.connect_port(path, 5)


@pytest.mark.parametrize(
    "answer",
    [
        b"NO\n",
        b"OK\n",
        b"OK x\n",
        b"OK 1",
        b"ok 1\n",
        b"OK 1 2\n",
        b"\n",
        b"OK " + b"1" * 40 + b"\n",
    ],
)
async def test_a_malformed_answer_is_an_error(tmp_path, answer):
    async with device(tmp_path, saying(answer)) as (path, _):
        with pytest.raises(StreamEndedError):
            await vsock.connect_port(path, 5)


async def test_an_endless_line_is_not_read_for_ever(tmp_path):
    async def pour(_reader, writer):
        with contextlib.suppress(OSError):
            while True:
                writer.write(b"x" * 65536)
                await writer.drain()

    async with device(tmp_path, pour) as (path, _), asyncio.timeout(10):
        with pytest.raises(StreamEndedError):
            await vsock.connect_port(path, 5)


async def test_without_a_device_the_system_says_why(tmp_path):
    with pytest.raises(FileNotFoundError):
        await vsock.connect_port(tmp_path / "none", 1024)


@pytest.mark.parametrize("port", [-1, 1 << 32])
async def test_a_number_that_is_no_port_is_refused(tmp_path, port):
    with pytest.raises(ValueError, match="no vsock port"):
        await vsock.connect_port(tmp_path / "none", port)


async def test_writing_to_a_peer_that_has_gone_is_an_error(tmp_path):
    async with device(tmp_path, saying(b"OK 1\n")) as (path, _):
        stream = await vsock.connect_port(path, 1)
        assert await stream.read() == b""
        with pytest.raises(StreamEndedError):
            await fill(stream)
        await stream.close()


async def fill(stream):
    for _ in range(100):
        await stream.write(b"x" * 65536)


async def test_a_full_backlog_is_an_error_at_once(tmp_path):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(tmp_path / "s"))
    listener.listen(0)
    waiting = [await unix.connect(tmp_path / "s")]  # one more than the backlog is let in
    with pytest.raises(BlockingIOError):
        await unix.connect(tmp_path / "s")
    for stream in waiting:
        stream.abort()
    listener.close()
