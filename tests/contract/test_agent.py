"""The guest agent through the real client and mux, over Unix sockets instead of virtio-serial ports."""

import asyncio
import os
import time

import pytest

from banger.guest.connection import connect_guest
from banger.wire.mux import MAGIC, Mux
from tests.framework.agent_contract import AgentContract, size_of
from tests.framework.agent_process import agent_process
from tests.framework.guest_contract import SerialContract, fetch, pieces, run
from tests.framework.hostile_clients import HostileClients


class TestAgentOverASocket(SerialContract, AgentContract):
    """Both contracts."""


class TestHostileClientsOfAnAgentOverASocket(HostileClients):
    """And what it must survive."""


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
    guest = connect_guest(paths, "serial")
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
    assert await asyncio.wait_for(reader.readexactly(32), 30) == MAGIC + b"n" * 16
    writer.write(bytes(32 * 1024 + 9) + MAGIC + b"m" * 16)
    assert await asyncio.wait_for(reader.readexactly(32), 30) == MAGIC + b"m" * 16
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
    guest = connect_guest(paths, "serial")
    await guest.wait_connected(10)
    assert process.poll() is None
    await guest.close()


async def _settled(pid, threads, files):
    """What the agent uses once it has let go of what its last requests used; RSS in kB."""
    end = time.monotonic() + 60
    while (size := size_of(pid))[1] > threads or size[2] > files:
        assert time.monotonic() < end, f"threads and descriptors: {size[1:]}"
        await asyncio.sleep(0.05)
    return size[0]


@pytest.mark.long
@pytest.mark.timeout(240)
async def test_10_000_commands_leave_the_agent_as_it_was(agent, guest):
    pid = agent[1].pid
    _, threads, files = size_of(pid)

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
    _, threads, files = size_of(pid)
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


async def test_a_vm_without_bulk_ports_uses_the_mux(tmp_path):
    with agent_process(tmp_path, bulk_ports=0) as (paths, _):
        guest = connect_guest(paths, "serial")
        (tmp_path / "file").write_bytes(b"content")
        tree = await fetch(guest, str(tmp_path / "file"))
        (tmp_path / "file").unlink()
        await guest.put_files(str(tmp_path), pieces(tree))
        assert (tmp_path / "file").read_bytes() == b"content"
        await guest.close()
