"""The guest contract on a real guest: the agent over virtio-serial."""

import asyncio
import os

import pytest

from banger.guest.connection import connect_guest
from banger.model.machine import VmPaths
from tests.framework.guest_contract import SerialContract, restart_agent, run
from tests.framework.hostile_clients import HostileClients


@pytest.fixture(scope="module")
def paths(vm):
    """The daemon is stopped meanwhile: a virtio-serial port has one client at a time."""
    record = vm.vm("box")
    vm.run("daemon", "stop")
    yield VmPaths(vm.state / "vms" / record["id"], vm.runtime / "vms" / record["id"])
    assert vm.vm("box")["state"] == "running"  # a new daemon has adopted it


@pytest.fixture
async def guest(paths):
    guest = connect_guest(paths, "serial")
    await guest.wait_connected(60)
    yield guest
    await guest.close()


@pytest.mark.timeout(300)
class TestRealGuest(SerialContract):
    """The contract."""


class TestHostileClientsOfARealGuest(HostileClients):
    """And what its agent must survive."""


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_hundreds_of_commands_leave_the_agent_as_it_was(guest):
    """Ten thousand are run in tests/contract, where a guest is not emulated."""

    async def size():
        script = "awk '/VmRSS|Threads/ {print $2}' /proc/$PPID/status; ls /proc/$PPID/fd | wc -l"
        out, err, status = await run(guest, "sh", "-c", script)
        assert status == 0, err
        return [int(word) for word in out.split()]

    async def calls(count):
        for _ in range(count):
            assert (await run(guest, "true"))[2] == 0

    await asyncio.gather(*(calls(10) for _ in range(4)))
    rss, threads, files = await size()
    await asyncio.gather(*(calls(50) for _ in range(4)))
    end = asyncio.get_running_loop().time() + 60
    while (now := await size())[1] > threads or now[2] > files:
        assert asyncio.get_running_loop().time() < end, f"threads, descriptors: {now[1:]}"
    assert now[0] - rss < 512


async def test_the_channel_survives_hosts_that_vanish_in_mid_frame(paths):
    """Twenty hosts cut off at random places; each successor gets a working channel."""
    from banger.wire.mux import Mux

    for number in range(20):
        async with asyncio.timeout(60):
            mux = await Mux.connect(paths.agent_socket)
        frame = (
            (number).to_bytes(4, "big")
            + b"\x04"
            + (32 * 1024).to_bytes(4, "big")
            + os.urandom(32 * 1024)
        )
        mux._writer.write(frame[: number * 1700])
        mux._writer.transport.abort()
        await mux.close()
    guest = connect_guest(paths, "serial")
    await guest.wait_connected(60)
    assert (await run(guest, "echo", "alive"))[0] == b"alive\n"
    await guest.close()


async def test_the_agent_is_reached_again_after_systemd_has_restarted_it(guest):
    await restart_agent(guest)
