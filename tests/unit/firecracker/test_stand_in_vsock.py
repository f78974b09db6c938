"""The stand-in's vsock socket in front of the real guest agent: what a client of Firecracker's may rely on, and may not."""

import asyncio
import contextlib
import json
import socket
from pathlib import Path

import pytest

from tests.framework.agent_process import agent_process
from tests.framework.firecracker import vsock
from tests.framework.firecracker.host import listen
from tests.framework.firecracker.log import Log
from tests.framework.firecracker.vsock import Bridge

HEALTH = b"GET /healthz HTTP/1.1\r\nHost: guest\r\nAuthorization: Bearer secret\r\n\r\n"


class PlayedGuest:
    """A guest whose driver comes up when the test says so; its agent is a process on this host."""

    def __init__(self, path):
        self.agent_path = str(path)
        self.port_open = asyncio.Event()
        self.driver = asyncio.Event()

    async def wait_for_driver(self, device):
        await self.driver.wait()


@pytest.fixture
async def guest(tmp_path):
    with agent_process(tmp_path, bulk_ports=0) as (paths, process):
        made = PlayedGuest(paths.agent_socket)
        made.process = process
        yield made


@pytest.fixture
async def bridge(guest, tmp_path):
    """The socket's path; the guest is up."""
    guest.driver.set()
    guest.port_open.set()
    async with running(guest, tmp_path / "v.sock") as path:
        yield path


@contextlib.asynccontextmanager
async def running(guest, path):
    listener = listen(str(path))
    made = Bridge(listener, guest, "serial0", Log("test"))
    task = asyncio.create_task(made.run())
    if guest.driver.is_set():
        async with asyncio.timeout(10):
            while made._mux is None:
                await asyncio.sleep(0.01)
    yield path
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    listener.close()


async def connect(path, line=b"CONNECT 1024\n"):
    """A connection that sent ``line``, and what came back: empty if it was closed."""
    reader, writer = await asyncio.open_unix_connection(path)
    writer.write(line)
    async with asyncio.timeout(10):
        try:
            return reader, writer, await reader.readline()
        except ConnectionResetError:  # what was not read of the line makes a close a reset
            return reader, writer, b""


async def refused(path, line):
    _, writer, answer = await connect(path, line)
    writer.close()
    return answer == b""


async def healthy(path):
    reader, writer, answer = await connect(path)
    assert answer.startswith(b"OK ")
    writer.write(HEALTH)
    async with asyncio.timeout(10):
        said = await reader.read()
    writer.close()
    return json.loads(said.partition(b"\r\n\r\n")[2])["status"] == "ok"


@contextlib.asynccontextmanager
async def guest_port(serve):
    """A TCP port of the guest, which is this host."""
    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


async def test_a_connection_is_confirmed_and_reaches_the_agent(bridge):
    first, second = await connect(bridge), await connect(bridge)
    assert [first[2], second[2]] == [b"OK 1073741824\n", b"OK 1073741825\n"]
    for _, writer, _ in (first, second):
        writer.close()
    assert await healthy(bridge)


async def test_many_connections_at_once_are_served(bridge):
    assert all(await asyncio.gather(*(healthy(bridge) for _ in range(60))))


async def test_a_port_without_listener_just_closes(bridge):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
        assert await refused(bridge, b"CONNECT %d\n" % port)
    assert await refused(bridge, b"CONNECT 70000\n")
    assert await healthy(bridge)


@pytest.mark.parametrize(
    "line",
    [b"CONNECT\n", b"PLEASE 1024\n", b"CONNECT 10", b"CONNECT 1024", b"CONNECT -1\n", b"CONNECT x1024\n", b"CONNECT 4294967296\n", b"GET / HTTP/1.1\r\n\r\n", b"x" * 40],
)  # fmt: skip
async def test_a_line_that_is_none_or_comes_in_pieces_just_closes(bridge, line):
    assert await refused(bridge, line)
    assert await healthy(bridge)


async def test_what_follows_the_line_belongs_to_the_stream(bridge):
    reader, writer, answer = await connect(bridge, b"connect  1024\n" + HEALTH)
    assert answer == b"OK 1073741824\n"
    async with asyncio.timeout(10):
        assert b'"status":"ok"' in await reader.read()
    writer.close()


async def test_before_the_guests_driver_is_up_a_connection_waits(guest, tmp_path):
    guest.port_open.set()
    async with running(guest, tmp_path / "v.sock") as path:
        reader, writer = await asyncio.open_unix_connection(path)
        writer.write(b"CONNECT 1024\n")
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(reader.readline(), 0.3)
        writer.close()
        guest.driver.set()
        async with asyncio.timeout(10):
            while await refused(path, b"CONNECT 1024\n"):
                await asyncio.sleep(0.05)
        assert await healthy(path)


async def test_with_the_driver_but_without_the_agent_a_connection_closes(guest, tmp_path):
    guest.driver.set()
    listener = listen(str(tmp_path / "v.sock"))
    task = asyncio.create_task(Bridge(listener, guest, "serial0", Log("test")).run())
    assert await refused(tmp_path / "v.sock", b"CONNECT 1024\n")
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    listener.close()


async def test_an_agent_that_is_gone_closes_its_connections_and_a_new_one_is_found(
    bridge, guest, tmp_path
):
    reader, writer, answer = await connect(bridge)
    assert answer
    guest.process.kill()
    async with asyncio.timeout(10):
        assert await reader.read() == b""
    writer.close()
    assert await refused(bridge, b"CONNECT 1024\n")
    guest.process.wait()
    Path(guest.agent_path).unlink()
    with agent_process(tmp_path, bulk_ports=0):
        async with asyncio.timeout(20):
            while await refused(bridge, b"CONNECT 1024\n"):
                await asyncio.sleep(0.05)
        assert await healthy(bridge)


async def test_clients_that_vanish_at_any_point_leave_the_others_alone(bridge):
    for line in (b"", b"CON", b"CONNECT 1024\n", b"CONNECT 1024\nGET /hea"):
        for _ in range(5):
            client = socket.socket(socket.AF_UNIX)
            client.connect(str(bridge))
            client.send(line)
            client.close()
    _, writer, _ = await connect(bridge)
    writer.transport.abort()
    assert await healthy(bridge)


async def test_bytes_arrive_whole_in_both_directions_at_once(bridge):
    sent = bytes(range(256)) * 8192  # 2 MiB, many windows

    async def echo(reader, writer):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
        writer.close()

    async with guest_port(echo) as port:
        reader, writer, answer = await connect(bridge, b"CONNECT %d\n" % port)
        assert answer

        async def send():
            writer.write(sent)
            await writer.drain()

        task = asyncio.create_task(send())
        async with asyncio.timeout(30):
            assert await reader.readexactly(len(sent)) == sent
            await task
        writer.close()


async def test_a_client_that_does_not_read_stops_the_guest(bridge):
    written = 0

    async def flood(reader, writer):
        nonlocal written
        with contextlib.suppress(ConnectionError):
            while True:
                writer.write(bytes(1 << 16))
                await writer.drain()
                written += 1 << 16

    async with guest_port(flood) as port:
        _, writer, answer = await connect(bridge, b"CONNECT %d\n" % port)
        assert answer
        writer.transport.pause_reading()
        before = -1
        async with asyncio.timeout(20):
            while written != before:
                before = written
                await asyncio.sleep(0.5)
        assert written < 64 << 20
        assert await healthy(bridge)
        writer.transport.abort()


async def test_there_are_as_many_connections_as_firecracker_has(bridge, monkeypatch):
    monkeypatch.setattr(vsock, "MAX_CONNECTIONS", 2)
    held = [await connect(bridge) for _ in range(2)]
    assert await refused(bridge, b"CONNECT 1024\n")
    held[0][1].close()
    async with asyncio.timeout(10):
        while await refused(bridge, b"CONNECT 1024\n"):
            await asyncio.sleep(0.05)
    held[1][1].close()
