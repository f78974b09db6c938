"""A banger-helper that makes snapshot devices alone, on the kernel's device mapper or, where there is none, on a fake one over real loop devices."""

import asyncio
import json
import os
import time
from contextlib import asynccontextmanager

from banger.helper.audit import AuditLog
from banger.helper.listening import bind
from banger.helper.policy import Policy
from banger.helper.server import Server
from banger.helper.verbs import World
from banger.host import dm, loop, probe
from banger.host.loop import Backing
from banger.storage.snapshots.client import HelperSnapshots
from banger.storage.snapshots.service import SnapshotService
from tests.framework.fake_mapper import YES, FakeMapper
from tests.framework.helper_host import GROUP


class SnapshotHost:
    """The running helper: ``service``, ``mapper`` (`banger.host.dm` or a fake), ``socket``, ``policy``."""

    def __init__(self, directory, quota=None, *, fake=False):
        self.directory, self.quota = directory, quota
        self.real = bool(probe.device_mapper()) and not fake
        self.mapper = dm if self.real else FakeMapper()
        self.socket = directory / "helper.sock"
        self.policy = Policy(GROUP, time.monotonic)
        self.service = self.another()

    def another(self):
        """The next helper's service on this host."""
        able = probe.device_mapper if self.real else lambda: YES
        return SnapshotService(
            self.directory / "state", mapper=self.mapper, able=able, quota=self.quota
        )

    def audited(self):
        lines = (self.directory / "state" / "audit.log").read_text().splitlines()
        return [json.loads(line) for line in lines]

    async def names(self):
        """Of the mappings that are banger's by name."""
        return {each.name for each in await self.mapper.mappings() if each.name.startswith("banger-")}  # fmt: skip

    async def clear(self):
        """Remove all that is left."""
        for each in await self.mapper.mappings():
            if each.uuid.startswith("BANGER-HELPER-"):
                await self.mapper.remove(each.uuid, timeout_s=10)


@asynccontextmanager
async def snapshot_host(directory, quota=None, *, fake=False):
    """One that serves; at the end its devices are removed."""
    host = SnapshotHost(directory, quota, fake=fake)
    await host.service.start()
    listener = bind(host.socket, GROUP)
    directory.chmod(0o755)  # its users come from elsewhere
    audit = AuditLog(directory / "state" / "audit.log")
    server = Server(listener, World(None, host.service), host.policy, audit)
    serving = asyncio.create_task(server.serve())
    try:
        yield host
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        await server.close()
        host.service.close()
        await host.clear()
        host.socket.unlink(missing_ok=True)


def client_of(host):
    """The way of a daemon to it."""
    return HelperSnapshots(host.socket)


def loops_over(path):
    found = os.stat(path)
    return loop.over(Backing(found.st_dev, found.st_ino))


def none_left(*paths):
    """The kernel lets go of files a moment after the last close."""
    end = time.monotonic() + 30
    while any(loops_over(path) for path in paths) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(loops_over(path) for path in paths)
