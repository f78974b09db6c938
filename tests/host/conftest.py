"""Fixtures for tests that build networks: each on a host of its own (a namespace), so that the real one is never touched."""

import contextlib
import os
import shutil
import tempfile
from pathlib import Path

import pytest

from banger.host import proc
from banger.host.namespaces import probe_namespaces
from banger.host.probe import root
from banger.network.user import UserNetwork
from tests.framework import firecracker_program
from tests.framework.net_host import LinuxGuest, OwnHost, Wire


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
def own_host():
    if not root():
        pytest.skip(f"a host of its own needs root: {root().why}")
    host = OwnHost()
    yield host
    host.close()


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
async def network(own_host, namespaces_work, short_dir):
    """A started network of an empty host; ended with all that hangs on it."""
    made = UserNetwork(short_dir, short_dir)
    await made.start()
    yield made
    await made.stop(if_unused=False)
    await made.close()


class Guests:
    """Attaches guests and wires; closes them."""

    def __init__(self, network, stack):
        self.network, self._stack = network, stack
        self.leases = []

    async def attach(self, network=None):
        network = network or self.network
        lease = network.plan_lease(f"{len(self.leases):012x}", self.leases)
        self.leases.append(lease)
        return await network.attach(lease, "auto")

    async def linux(self):
        guest = LinuxGuest(await self.attach())
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
