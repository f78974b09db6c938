"""The guest agent through the real client and mux, over a Unix socket instead of a virtio-serial port."""

import asyncio
import json
import os
import signal
import socket
import tarfile
import time
from pathlib import Path

import pytest

from banger.guest.connection import connect_guest
from banger.model.errors import GuestNotReadyError, RefusedError
from banger.model.machine import VmPaths
from banger.wire.mux import MAGIC, Mux
from tests.framework.agent_process import agent_process
from tests.framework.guest_contract import GuestContract, all_ports_busy, fetch, pieces, run
from tests.framework.hostile_clients import HostileClients


class TestAgentOverASocket(GuestContract):
    """The contract."""


class TestHostileClientsOfAnAgentOverASocket(HostileClients):
    """And what it must survive."""


async def test_a_wrong_token_is_refused(agent, tmp_path_factory):
    paths, _ = agent
    copy = VmPaths(tmp_path_factory.mktemp("wrong"), paths.runtime)
    copy.agent_token.write_text("wrong")
    wrong = connect_guest(copy)
    with pytest.raises(RefusedError, match="token"):
        await wrong.healthz(5)
    with pytest.raises(RefusedError, match="token"):
        await wrong.put_files("/tmp", pieces(b""))
    await wrong.close()


async def test_services_are_waited_for_inside_the_guest(tmp_path):
    listener = socket.socket()
    listener.bind(("127.0.0.1", 0))
    port = listener.getsockname()[1]
    with agent_process(tmp_path, services=json.dumps([{"name": "web", "port": port}])) as (
        paths,
        _,
    ):
        guest = connect_guest(paths)
        assert (await guest.healthz(5))["services"] == [
            {"name": "web", "port": port, "ready": False}
        ]
        waiting = asyncio.create_task(guest.wait_services(10))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        listener.listen()
        assert (await asyncio.wait_for(waiting, 5))["services"][0]["ready"] is True
        await guest.close()
    listener.close()


async def test_a_proxied_port_carries_bytes_both_ways(guest):
    async def echo(reader, writer):
        writer.write(await reader.readexactly(5))
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(echo, "127.0.0.1", 0)
    stream = await guest.proxy(server.sockets[0].getsockname()[1])
    await stream.write(b"hello")
    assert await stream.read() == b"hello"
    assert await stream.read() == b""
    await stream.close()
    server.close()


@pytest.mark.parametrize("cut", [0, 1, 8, 9, 10, 500, 32 * 1024])
async def test_a_host_killed_in_the_middle_of_a_frame_does_not_confuse_the_guest(agent, cut):
    """Whatever the last host left half sent, the next one gets a working channel at once."""
    paths, _ = agent
    mux = await asyncio.wait_for(Mux.connect(paths.agent_socket), 10)
    stream = await mux.open(1024)
    frame = (
        (1).to_bytes(4, "big")
        + b"\x04"
        + (32 * 1024).to_bytes(4, "big")
        + bytes(os.urandom(32 * 1024))
    )
    mux._writer.write(frame[:cut])
    await mux._writer.drain()
    mux._writer.transport.abort()
    del stream
    guest = connect_guest(paths)
    await guest.wait_connected(10)
    assert (await run(guest, "echo", "again"))[0] == b"again\n"
    await guest.close()
    await mux.close()


async def test_the_next_host_synchronises_even_when_the_guest_did_not_notice_the_change(agent):
    """On virtio-serial a quick reconnect may go unnoticed: half a frame, then the new host's padding, on one byte stream."""
    paths, _ = agent
    reader, writer = await asyncio.open_unix_connection(paths.agent_socket)
    half = (1).to_bytes(4, "big") + b"\x04" + (32 * 1024).to_bytes(4, "big") + b"abc"
    writer.write(bytes(40000) + MAGIC + b"n" * 16 + half)
    assert await asyncio.wait_for(reader.readexactly(32), 5) == MAGIC + b"n" * 16
    writer.write(bytes(32 * 1024 + 9) + MAGIC + b"m" * 16)
    assert await asyncio.wait_for(reader.readexactly(32), 5) == MAGIC + b"m" * 16
    writer.close()


GARBAGE = [
    b"\0" * 100_000,
    os.urandom(50_000),
    b"GET / HTTP/1.1\r\n\r\n",
    MAGIC,
    MAGIC + b"n" * 16 + os.urandom(50_000),
]


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_garbage_on_the_channel_is_survived(agent, garbage):
    paths, process = agent
    _, writer = await asyncio.open_unix_connection(paths.agent_socket)
    writer.write(garbage)
    await writer.drain()
    writer.close()
    guest = connect_guest(paths)
    await guest.wait_connected(10)
    assert process.poll() is None
    await guest.close()


def _size(pid):
    status = Path(f"/proc/{pid}/status").read_text()
    rss = int(status.split("VmRSS:")[1].split()[0])
    threads = int(status.split("Threads:")[1].split()[0])
    return rss, threads, len(os.listdir(f"/proc/{pid}/fd"))


async def _settled(pid, threads, files):
    """What the agent uses once it has let go of what its last requests used; RSS in kB."""
    end = time.monotonic() + 10
    while (size := _size(pid))[1] > threads or size[2] > files:
        assert time.monotonic() < end, f"threads and descriptors: {size[1:]}"
        await asyncio.sleep(0.05)
    return size[0]


@pytest.mark.timeout(240)
async def test_10_000_commands_leave_the_agent_as_it_was(agent, guest):
    pid = agent[1].pid
    _, threads, files = _size(pid)

    async def calls(count):
        for _ in range(count):
            assert (await run(guest, "true"))[2] == 0

    await asyncio.gather(*(calls(500) for _ in range(4)))
    before = await _settled(pid, threads, files)
    await asyncio.gather(*(calls(2500) for _ in range(4)))
    after = await _settled(pid, threads, files)
    # The heap of four threads at once finds its size slowly; a leak of 200 bytes a command would be more.
    assert after - before < 1536, f"{before} kB -> {after} kB"


async def test_100_transfers_leave_the_agent_as_it_was(agent, guest, tmp_path):
    pid = agent[1].pid
    _, threads, files = _size(pid)
    (tmp_path / "tree").mkdir()
    for number in range(50):
        (tmp_path / "tree" / str(number)).write_bytes(os.urandom(10_000))

    async def there_and_back(number, count):
        target = tmp_path / str(number)
        target.mkdir(exist_ok=True)
        for _ in range(count):
            tree = await fetch(guest, str(tmp_path / "tree"))
            await guest.put_files(str(target), pieces(tree))

    await asyncio.gather(*(there_and_back(number, 10) for number in range(3)))
    before = await _settled(
        pid, threads, files + 2
    )  # it lets go of a port's last client when the next comes
    await asyncio.gather(*(there_and_back(number, 33) for number in range(3)))
    after = await _settled(pid, threads, files + 2)
    assert after - before < 1024, f"{before} kB -> {after} kB"


@pytest.mark.parametrize("ports", ["bulk", "mux"])
async def test_a_slow_reader_costs_neither_side_memory(agent, guest, tmp_path, ports):
    """The agent waits for who reads, and so does the host's end: 200 MiB are nowhere but in the file."""
    with (tmp_path / "big").open("wb") as file:
        file.truncate(200 << 20)
    with all_ports_busy(guest, busy=ports == "mux"):
        before, here = _size(agent[1].pid)[0], _size(os.getpid())[0]
        reading = guest.get_files(str(tmp_path / "big"))
        for _ in range(5):
            await anext(reading)
            await asyncio.sleep(0.1)
        assert _size(agent[1].pid)[0] - before < 8192
        assert _size(os.getpid())[0] - here < 8192
        await reading.aclose()


@pytest.mark.parametrize("ports", ["bulk", "mux"])
async def test_a_slow_guest_makes_the_sender_wait(agent, guest, tmp_path, ports):
    asked = 0

    async def source():
        nonlocal asked
        header = tarfile.TarInfo("big")
        header.size = 200 << 20
        yield header.tobuf()
        for _ in range(200):
            asked += 1
            yield bytes(1 << 20)

    with all_ports_busy(guest, busy=ports == "mux"):
        sending = asyncio.create_task(guest.put_files(str(tmp_path), source()))
        while not asked:
            await asyncio.sleep(0.001)
        os.kill(agent[1].pid, signal.SIGSTOP)
        await asyncio.sleep(0.3)
        seen = asked
        await asyncio.sleep(0.3)
        assert asked == seen < 200
        os.kill(agent[1].pid, signal.SIGCONT)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await sending


@pytest.mark.parametrize("ports", ["bulk", "mux"])
async def test_an_agent_that_dies_in_a_transfer_makes_it_fail(agent, guest, tmp_path, ports):
    async def source():
        header = tarfile.TarInfo("big")
        header.size = 10 << 20
        yield header.tobuf() + bytes(1 << 20)
        agent[1].kill()
        for _ in range(9):
            yield bytes(1 << 20)
        yield bytes(10240)

    with (tmp_path / "there").open("wb") as file:
        file.truncate(50 << 20)
    with all_ports_busy(guest, busy=ports == "mux"):
        reading = guest.get_files(str(tmp_path / "there"))
        await anext(reading)
        with pytest.raises(GuestNotReadyError):
            await guest.put_files(str(tmp_path), source())
        with pytest.raises(GuestNotReadyError):
            _ = [chunk async for chunk in reading]


async def test_a_vm_without_bulk_ports_uses_the_mux(tmp_path):
    with agent_process(tmp_path, bulk_ports=0) as (paths, _):
        guest = connect_guest(paths)
        (tmp_path / "file").write_bytes(b"content")
        tree = await fetch(guest, str(tmp_path / "file"))
        (tmp_path / "file").unlink()
        await guest.put_files(str(tmp_path), pieces(tree))
        assert (tmp_path / "file").read_bytes() == b"content"
        await guest.close()


async def test_an_agent_that_does_not_answer_is_said_to_be_so_in_time(tmp_path):
    paths = VmPaths(tmp_path, tmp_path)
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(paths.agent_socket))
    listener.listen(1)
    guest = connect_guest(paths)
    began = time.monotonic()
    with pytest.raises(GuestNotReadyError):
        await guest.healthz(0.3)
    with pytest.raises(GuestNotReadyError):
        await guest.wait_connected(0.3)
    assert time.monotonic() - began < 2
    await guest.close()
    listener.close()


async def test_64_mib_are_byte_exact(guest):
    data = os.urandom(1 << 20) * 64
    began = time.monotonic()
    out, _, _ = await run(guest, "cat", stdin=data, timeout=100)
    print(f"exec cat: {64 / (time.monotonic() - began):.0f} MiB/s each way")
    assert out == data
