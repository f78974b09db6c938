"""Relays keep bytes, ends, limits and order between a loopback port and wherever ``dial`` leads."""

import asyncio
import contextlib
import os
import socket

import pytest

from banger.model.errors import GuestNotReadyError, HostLacksError, RefusedError
from banger.network import forward
from banger.network.forward import Relays


@contextlib.asynccontextmanager
async def relayed(serve, **options):
    """A relay to an asyncio server that runs ``serve``; yields the relays and the port."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    address = server.sockets[0].getsockname()

    async def dial():
        opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        await asyncio.get_running_loop().sock_connect(opened, address)
        return opened

    relays = Relays(**options)
    try:
        yield relays, await relays.add(0, dial)
    finally:
        await relays.close()
        server.close()
        await server.wait_closed()


async def connect(port):
    return await asyncio.open_connection("127.0.0.1", port)


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_bytes_pass_both_ways_unchanged_and_in_order():
    data = os.urandom(3 << 20)
    async with relayed(echo) as (_, port):
        reader, writer = await connect(port)

        async def send():
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        _, received = await asyncio.gather(send(), reader.read(-1))
        assert received == data
        writer.close()


async def test_the_end_of_one_direction_leaves_the_other_open():
    async def answer_after_the_end(reader, writer):
        question = await reader.read(-1)
        writer.write(b"you said " + question)
        await writer.drain()
        writer.close()

    async with relayed(answer_after_the_end) as (_, port):
        reader, writer = await connect(port)
        writer.write(b"all of it")
        writer.write_eof()
        assert await reader.read(-1) == b"you said all of it"
        writer.close()


async def test_a_server_that_speaks_first_is_heard():
    async def greet(reader, writer):
        writer.write(b"SSH-2.0\r\n")
        await reader.read(1)
        writer.close()

    async with relayed(greet) as (_, port):
        reader, writer = await connect(port)
        assert await reader.readline() == b"SSH-2.0\r\n"
        writer.close()


async def test_a_slow_reader_slows_the_writer_down():
    sent = 0
    stalled = asyncio.Event()

    async def pour(_, writer):
        nonlocal sent
        writer.transport.set_write_buffer_limits(0)
        with contextlib.suppress(ConnectionError):
            while True:
                try:
                    writer.write(bytes(1 << 16))
                    async with asyncio.timeout(0.3):
                        await writer.drain()
                except TimeoutError:
                    stalled.set()
                    return
                sent += 1 << 16

    async with relayed(pour) as (_, port), asyncio.timeout(10):
        with socket.create_connection(("127.0.0.1", port)) as opened:
            opened.setblocking(False)
            await stalled.wait()
            assert sent < 64 << 20


async def test_a_taken_port_is_refused_with_its_number_and_how_to_find_who_has_it():
    relays = Relays()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(RefusedError) as caught:
            await relays.add(port, nobody)
        assert str(port) in caught.value.what
        assert f"sport = :{port}" in caught.value.hint
    assert relays.ports == []


async def nobody():
    raise ConnectionRefusedError


async def test_a_port_that_we_may_not_have_is_said(monkeypatch):
    class Forbidden(socket.socket):
        def bind(self, address):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(forward.socket, "socket", Forbidden)
    with pytest.raises(HostLacksError, match="port 80 of"):
        await Relays().add(80, nobody)


async def test_ports_are_listed_given_back_and_free_again():
    relays = Relays()
    one, two = await relays.add(0, nobody), await relays.add(0, nobody)
    assert relays.ports == sorted([one, two])
    await relays.remove(one)
    await relays.remove(one)
    assert relays.ports == [two]
    assert await relays.add(one, nobody) == one
    await relays.close()
    assert relays.ports == []
    with socket.create_server(("127.0.0.1", two)):
        pass


async def test_only_loopback_is_listened_on():
    relays = Relays()
    port = await relays.add(0, nobody)
    assert relays._ports["tcp", port]._listener.getsockname() == ("127.0.0.1", port)
    await relays.close()


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(), TimeoutError(), GuestNotReadyError("no agent")]
)
async def test_a_guest_that_is_not_there_ends_the_connection_and_only_that(error):
    calls = 0

    async def dial():
        nonlocal calls
        calls += 1
        raise error

    relays = Relays()
    port = await relays.add(0, dial)
    for _ in range(2):
        reader, writer = await connect(port)
        assert await reader.read(-1) == b""
        writer.close()
    assert calls == 2
    await relays.close()


async def test_removing_a_port_ends_its_connections():
    async with relayed(echo) as (relays, port):
        reader, writer = await connect(port)
        writer.write(b"x")
        assert await reader.read(1) == b"x"
        await relays.remove(port)
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                assert await reader.read(-1) == b""
        writer.close()


async def test_connections_above_the_limit_wait_for_their_turn():
    async with relayed(echo, max_connections=2) as (_, port):
        first, second = await connect(port), await connect(port)
        third = await connect(port)
        for reader, writer in (first, second):
            writer.write(b"x")
            assert await reader.read(1) == b"x"
        third[1].write(b"y")
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await third[0].read(1)
        first[1].close()
        async with asyncio.timeout(30):
            assert await third[0].read(1) == b"y"
        for _, writer in (second, third):
            writer.close()


async def test_a_reset_of_one_side_ends_the_other():
    gone = asyncio.Event()

    async def wait_for_end(reader, writer):
        with contextlib.suppress(ConnectionError):
            await reader.read(-1)
        writer.close()
        gone.set()

    async with relayed(wait_for_end) as (_, port), asyncio.timeout(30):
        with socket.create_connection(("127.0.0.1", port)) as opened:
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await gone.wait()


async def test_a_stream_without_half_close_stays_while_it_speaks_and_ends_in_silence(monkeypatch):
    over, wait = asyncio.Queue(), asyncio.wait

    async def a_while(tasks, *, timeout=None, **how):
        if timeout == forward.SILENCE_S:  # it is over when the test says so, which may be held up
            timeout = await over.get()
        return await wait(tasks, timeout=timeout, **how)

    monkeypatch.setattr(forward.asyncio, "wait", a_while)
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)

    async def dial():
        return theirs

    relays, loop = Relays(), asyncio.get_running_loop()
    port = await relays.add(0, dial)
    reader, writer = await connect(port)
    writer.write(b"question")
    writer.write_eof()
    assert await loop.sock_recv(ours, 64) == b"question"
    async with asyncio.timeout(30):
        for part in (b"long ", b"answer"):
            await loop.sock_sendall(ours, part)
            assert await reader.readexactly(len(part)) == part
            over.put_nowait(0)
            await asyncio.sleep(0.05)
        over.put_nowait(0)
        assert await reader.read(-1) == b""
        assert await loop.sock_recv(ours, 64) == b"", "the silent stream is closed"
    writer.close()
    ours.close()
    await relays.close()
