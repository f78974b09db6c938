"""Fixtures for tests that build networks: each on a host of its own (a namespace), so that the real one is never touched."""

import contextlib
import os
import shutil
import tempfile
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
    left = proc.find_by_argument(str(directory / "net" / "holder.sock"))
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
async def network(own_host, namespaces_work, short_dir, network_mode):
    """A started network of an empty host; ended with all that hangs on it."""
    uplinks = uplinks_of(short_dir)
    if network_mode == "bridge":
        made = BridgeNetwork(short_dir, short_dir, uplinks)
    else:
        made = UserNetwork(short_dir, short_dir)
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


class Guests:
    """Attaches guests and wires; closes them."""

    def __init__(self, network, stack):
        self.network, self._stack = network, stack
        self.leases = []

    async def attach(self, network=None, *, outward=True):
        network = network or self.network
        lease = network.plan_lease(f"{len(self.leases):012x}", self.leases)
        self.leases.append(lease)
        lease, _ = await network.settle(lease, "auto")
        return await network.attach(lease, "auto", named=False, outward=outward)

    async def linux(self, *, outward=True):
        guest = LinuxGuest(await self.attach(outward=outward))
        self._stack.callback(guest.close)
        return guest

    async def wire(self, *, resolved=True):
        wire = Wire(await self.attach())
        self._stack.callback(os.close, wire.tap)
        if resolved:
            wire.resolve()
        return wire


@pytest.fixture
async def guests(network):
    with contextlib.ExitStack() as stack:
        yield Guests(network, stack)
