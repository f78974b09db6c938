"""Fixtures for tests that build networks: each on a host of its own (a namespace), so that the real one is never touched."""

import asyncio
import contextlib
import os
import shutil
import tempfile
import time
from pathlib import Path

import pytest

from banger.host import proc
from banger.host.namespaces import probe_namespaces
from banger.network.bridge import BridgeNetwork
from banger.network.uplinks.client import HostUplinks
from banger.network.uplinks.service import UplinkService
from banger.network.uplinks.slots import SlotPlan
from banger.network.user import UserNetwork
from tests.framework import firecracker_program
from tests.framework.helper_host import host_state
from tests.framework.net_host import LinuxGuest, Wire


@pytest.fixture
def short_dir():
    """A directory with a short path: sockets go there."""
    directory = Path(tempfile.mkdtemp(prefix="bgn-", dir="/tmp"))
    yield directory
    end = time.monotonic() + 30
    while (left := proc.find_by_argument(str(directory / "net" / "holder.sock"))) and (
        time.monotonic() < end
    ):  # one that was killed may still be dying
        time.sleep(0.05)
    for identity in left:
        os.kill(identity.pid, 9)
    shutil.rmtree(directory)
    assert not left, "a holder was left"


@pytest.fixture
def namespaces_work():
    answer = probe_namespaces()
    if not answer:
        pytest.skip(f"no namespaces: {answer.why}; {answer.hint}")


@pytest.fixture(scope="session")
def firecracker():
    """The real Firecracker and its jailer; see `firecracker_program.Programs`."""
    if why := firecracker_program.why_not_here():
        pytest.skip(f"no real Firecracker: {why}")
    return firecracker_program.programs()[0]


@pytest.fixture
def network_mode():
    """Which network the tests of a module use; modules whose promises hold in both have a fixture of their own in its place."""
    return "user"


@pytest.fixture
def pool():
    """How many TAPs are made ahead."""
    return 4


@pytest.fixture
async def network(own_host, namespaces_work, short_dir, network_mode, pool):
    """A started network of an empty host; ended with all that hangs on it."""
    uplinks = uplinks_of(short_dir)
    if network_mode == "bridge":
        made = BridgeNetwork(short_dir, short_dir, uplinks, pool=pool)
    else:
        made = UserNetwork(short_dir, short_dir, pool=pool)
    before = host_state()
    await made.start()
    yield made
    await made.stop(if_unused=False)
    await made.close()
    await uplinks.close()
    if network_mode == "bridge":
        assert host_state()[0] == before[0], "rules were left on the host"


def uplinks_of(directory):
    """Routed uplinks made in this process, as root's daemon makes them where no helper runs."""
    service = UplinkService(directory / "helper", SlotPlan())
    return HostUplinks(directory / "none.sock", service)


async def filled(space):
    """Return when the pool has its size."""
    async with asyncio.timeout(30):
        while len(space.taps.pooled) != space.taps._size:
            await asyncio.sleep(0.01)


async def least_ms(network, guests):
    """How long the first VM waits for the network, and one more for its TAP: the least of some, since others use the processors too."""

    async def taken_ms():
        began = time.monotonic()
        wire = await guests.wire(resolved=False)
        return 1e3 * (time.monotonic() - began), wire

    cold_ms, wire = await taken_ms()
    for _ in range(4):
        await network.detach(wire.lease)
        await network.stop()
        again_ms, wire = await taken_ms()
        cold_ms = min(cold_ms, again_ms)
    return cold_ms, min([(await taken_ms())[0] for _ in range(10)])


class Guests:
    """Attaches guests and wires; closes them."""

    def __init__(self, network, stack):
        self.network, self._stack = network, stack
        self.leases = []
        self.pooled = False

    async def attach(self, network=None, *, outward=True, groups=(), pooled=False):
        if pooled or self.pooled:
            async with self.network._lock:
                await self.network._up()
            await filled(self.network._space)
        network = network or self.network
        lease = network.plan_lease(f"{len(self.leases):012x}", self.leases)
        self.leases.append(lease)
        lease, _ = await network.settle(lease, "auto")
        return await network.attach(lease, "auto", named=False, outward=outward, groups=groups)

    async def attach_and_close(self, **options):
        attached = await self.attach(**options)
        os.close(attached.tap_fd)
        return attached

    async def linux(self, **options):
        guest = LinuxGuest(await self.attach(**options))
        self._stack.callback(guest.close)
        return guest

    async def wire(self, *, resolved=True, **options):
        wire = Wire(await self.attach(**options))
        self._stack.callback(os.close, wire.tap)
        if resolved:
            wire.resolve()
        return wire


@pytest.fixture
async def guests(network):
    with contextlib.ExitStack() as stack:
        yield Guests(network, stack)
