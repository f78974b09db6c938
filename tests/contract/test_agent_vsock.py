"""The guest agent through the real client over vsock: a relay on this host is Firecracker's end of the device."""

import asyncio
import time

import pytest

from banger.guest.channel import UpgradedStream
from banger.guest.connection import connect_guest
from banger.model.errors import GuestNotReadyError
from banger.wire import vsock
from tests.framework.agent_contract import AgentContract, agent_on_this_host
from tests.framework.agent_process import agent_process, http_socket
from tests.framework.guest_contract import GuestContract, run
from tests.framework.vsock_relay import VsockRelay


class TestAgentOverVsock(GuestContract, AgentContract):
    """Both contracts."""

    transport, socket = "vsock", "vsock_socket"


async def test_the_agent_is_reached_again_after_it_was_restarted(tmp_path):
    with agent_on_this_host(tmp_path, "vsock") as (paths, process):
        guest = connect_guest(paths, "vsock")
        await guest.wait_connected(10)
        session = await guest.exec({"argv": ["sleep", "300"]})
        process.kill()
        process.wait()
        async with asyncio.timeout(60):
            assert [frame async for frame in session.frames()] == []
        with pytest.raises(GuestNotReadyError, match="healthz") as raised:
            await guest.healthz(30)
        assert raised.value.detail == "nobody listens on that port of the guest"
        for path in (paths.agent_socket, http_socket(paths), *map(paths.bulk_socket, (0, 1))):
            path.unlink()
        waiting = asyncio.create_task(guest.wait_connected(60))  # the start below holds the loop up
        await asyncio.sleep(0.1)
        with agent_process(tmp_path, vsock=True):
            await waiting
            assert (await run(guest, "echo", "again"))[0] == b"again\n"
            await guest.close()
        await session.close()


async def test_two_hundred_streams_at_once_do_not_wait_for_each_other(tmp_path):
    with agent_on_this_host(tmp_path, "vsock") as (paths, _):
        guest = connect_guest(paths, "vsock")
        stalled = [await guest.proxy(1024) for _ in range(200)]
        assert (await run(guest, "echo", "beside"))[0] == b"beside\n"
        for stream in stalled:
            await stream.close()
        await guest.close()


async def test_closing_the_guest_ends_every_stream_of_it(tmp_path):
    with agent_on_this_host(tmp_path, "vsock") as (paths, _):
        guest = connect_guest(paths, "vsock")
        session = await guest.exec({"argv": ["sleep", "300"]})
        await guest.close()
        async with asyncio.timeout(30):
            assert [frame async for frame in session.frames()] == []


async def test_a_guest_that_is_not_up_yet_is_called_again(tmp_path, monkeypatch):
    """As long as the guest's driver is not up, the device takes calls and answers none."""
    monkeypatch.setattr("banger.guest.channel.CONNECT_S", 0.2)
    with agent_process(tmp_path, vsock=True) as (paths, _):
        silent = await asyncio.start_unix_server(lambda *_: None, paths.vsock_socket)
        guest = connect_guest(paths, "vsock")
        waiting = asyncio.create_task(guest.wait_connected(60))
        await asyncio.sleep(0.5)
        assert not waiting.done()
        silent.close()
        paths.vsock_socket.unlink()
        with VsockRelay(paths.vsock_socket, http_socket(paths)):
            began = time.monotonic()
            await waiting
            assert time.monotonic() - began < 10  # one call for all that time would have 60
            await guest.close()


@pytest.mark.parametrize("gives_up", ["device", "host"])
async def test_a_command_is_started_in_a_guest_that_was_too_busy_to_be_reached(tmp_path, monkeypatch, gives_up):  # fmt: skip
    """Firecracker closes a connection that its guest does not take within 2 s; here it is 1.2 s."""
    monkeypatch.setattr("banger.guest.channel.CONNECT_S", 1.2 if gives_up == "host" else 10)
    with agent_process(tmp_path, vsock=True) as (paths, _):
        calls = []

        async def busy(reader, writer):
            calls.append(await reader.readline())
            await (asyncio.sleep(1.2) if gives_up == "device" else reader.read())
            writer.close()

        silent = await asyncio.start_unix_server(busy, paths.vsock_socket)
        guest = connect_guest(paths, "vsock")
        starting = asyncio.create_task(run(guest, "echo", "there"))
        async with asyncio.timeout(60):
            while len(calls) < 2:  # a held-up loop may come to it late
                assert not starting.done()
                await asyncio.sleep(0.01)
        silent.close()
        paths.vsock_socket.unlink()
        with VsockRelay(paths.vsock_socket, http_socket(paths)):
            assert (await starting)[0] == b"there\n"
            await guest.close()


async def test_who_is_refused_a_connection_is_told_at_once(tmp_path):
    with agent_on_this_host(tmp_path, "vsock") as (paths, process):
        guest = connect_guest(paths, "vsock")
        process.kill()
        process.wait()
        began = time.monotonic()
        with pytest.raises(GuestNotReadyError, match="exec"):
            await run(guest, "true")
        assert time.monotonic() - began < 10  # who tries on does so for 90
        await guest.close()


async def test_bytes_that_come_with_an_upgrade_are_read_first(tmp_path):
    with agent_on_this_host(tmp_path, "vsock") as (paths, _):
        stream = UpgradedStream(await vsock.connect_port(paths.vsock_socket, 1024), b"early")
        assert await stream.read(3) == b"ear"
        assert await stream.read() == b"ly"
        await stream.close()
