"""A connection over a Unix socket: nothing that the peer said before it left is lost."""

import asyncio
import socket

import pytest

from banger.wire.http1 import StreamEndedError
from banger.wire.unix import UnixStream, connect


@pytest.fixture
def ends():
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        yield UnixStream(ours), theirs


async def test_what_the_peer_said_before_it_left_is_read_though_a_write_failed(ends):
    stream, peer = ends
    peer.sendall(b"OK 1\noutput")
    peer.close()
    with pytest.raises(StreamEndedError):
        await stream.write(b"the end of the input")
    assert await stream.line(32) == b"OK 1\n"
    assert await stream.read() == b"output"
    assert await stream.read() == b""
    await stream.close()


async def test_what_the_peer_left_unread_costs_nothing_of_what_it_said(ends):
    stream, peer = ends
    await stream.write(b"never read")
    peer.sendall(b"output")
    peer.close()
    assert await stream.read() == b"output"
    assert await stream.read() == b""
    assert "broke" in stream.why
    await stream.close()


@pytest.mark.parametrize("end", ["close", "abort"])
async def test_closing_ends_a_read_that_waits_and_a_write_that_waits(ends, end):
    stream, peer = ends
    reading = asyncio.create_task(stream.read())
    writing = asyncio.create_task(stream.write(bytes(1 << 24)))
    await asyncio.sleep(0.05)
    if end == "close":
        await stream.close()
    else:
        stream.abort()
    async with asyncio.timeout(30):
        assert await reading == b""
        with pytest.raises(StreamEndedError):
            await writing
    assert await stream.read() == b""
    with pytest.raises(StreamEndedError):
        await stream.write(b"more")
    assert stream.ended
    assert stream._socket.fileno() == -1
    peer.close()


async def test_writes_of_two_tasks_do_not_mix(ends):
    stream, peer = ends
    size = 1 << 22

    def take():
        got = bytearray()
        while len(got) < 2 * size:
            got += peer.recv(1 << 16)
        return got

    got, *_ = await asyncio.gather(
        asyncio.to_thread(take), stream.write(b"a" * size), stream.write(b"b" * size)
    )
    assert bytes(got) in {b"a" * size + b"b" * size, b"b" * size + b"a" * size}
    await stream.close()


@pytest.mark.parametrize(
    ("sent", "wanted"),
    [(b"short\nrest", b"short\n"), (b"x" * 40 + b"\n", b""), (b"x" * 400, b""), (b"half", b"half"), (b"", b"")],
)  # fmt: skip
async def test_a_line_is_one_of_so_many_bytes_at_most(ends, sent, wanted):
    stream, peer = ends
    peer.sendall(sent)
    peer.close()
    assert await stream.line(32) == wanted
    await stream.close()


async def test_the_end_is_known_before_it_is_read(ends):
    stream, peer = ends
    assert not stream.ended
    peer.sendall(b"last")
    peer.close()
    assert not stream.ended
    assert await stream.read() == b"last"
    assert stream.ended
    await stream.close()


async def test_a_full_backlog_is_an_error_at_once(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s"))
        listener.listen(0)
        first = await connect(tmp_path / "s")
        with pytest.raises(BlockingIOError):
            await connect(tmp_path / "s")
        await first.close()
