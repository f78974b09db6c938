"""A banger-helper in the calling thread's host (see `net_host.OwnHost`), its loop and its users."""

import asyncio
import contextlib
import json
import os
import socket
import subprocess
import time
from contextlib import asynccontextmanager

from banger.helper.audit import AuditLog
from banger.helper.listening import bind
from banger.helper.policy import Policy
from banger.helper.server import Server
from banger.helper.verbs import World
from banger.network.uplinks.service import UplinkService
from banger.network.uplinks.slots import SlotPlan
from banger.storage.snapshots.service import SnapshotService
from tests.framework.fake_mapper import FakeMapper
from tests.framework.net_host import BEYOND

GROUP = 4711
USER, OTHER, STRANGER = 4801, 4802, 4803


class Helper:
    """A running helper: its socket, its service and what it wrote."""

    def __init__(self, directory, service, policy):
        self.socket = directory / "helper.sock"
        self.service, self.policy = service, policy
        self.audit = directory / "state" / "audit.log"

    def audited(self):
        return [json.loads(line) for line in self.audit.read_text().splitlines()]


@asynccontextmanager
async def running_helper(directory, *, prefix="10.115.0.0/16", quota=4, resolver=lambda: BEYOND):
    """A helper that serves, in this thread's network namespace; uplinks that it leaves are removed at the end."""
    service = UplinkService(directory / "state", SlotPlan(prefix), quota=quota, resolver=resolver)
    await service.start()
    policy = Policy(GROUP, time.monotonic)
    listener = bind(directory / "helper.sock", GROUP)
    directory.chmod(0o755)  # its users come from elsewhere
    world = World(service, SnapshotService(directory / "state", mapper=FakeMapper()))
    await world.snapshots.start()
    server = Server(listener, world, policy, AuditLog(directory / "state" / "audit.log"))
    serving = asyncio.create_task(server.serve())
    try:
        yield Helper(directory, service, policy)
    finally:
        serving.cancel()
        await asyncio.wait({serving})
        await server.close()
        for each in await service.list(0):
            await service.detach(0, each.slot)
        await service.close()
        world.snapshots.close()
        (directory / "helper.sock").unlink(missing_ok=True)


def call(path, data, descriptors=()):
    """One message to the helper and its reply as it came; empty if it hung up. Blocking: for children."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as channel:
        channel.settimeout(60)
        try:
            channel.connect(str(path))
            socket.send_fds(channel, [data], list(descriptors))
            return channel.recv(1 << 16)
        except (ConnectionResetError, BrokenPipeError):
            return b""


def asked(path, op, *descriptors, **arguments):
    """The reply to a request, decoded; None if the helper hung up."""
    data = call(path, json.dumps({"op": op, **arguments}).encode(), descriptors)
    return json.loads(data) if data else None


def tables():
    done = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def links():
    return sorted(
        line.split(": ")[1].split("@")[0]
        for line in subprocess.run(
            ["ip", "-o", "link"], capture_output=True, text=True, check=True
        ).stdout.splitlines()
    )


def forwards(name):
    with open(f"/proc/sys/net/ipv4/conf/{name}/forwarding") as file:
        return file.read().strip() == "1"


def host_state():
    """All of this host that the helper could change, as text."""
    found = []
    for argv in (["nft", "list", "ruleset"], ["ip", "-o", "-4", "addr"], ["ip", "route"]):
        done = subprocess.run(argv, capture_output=True, text=True, check=True)
        found.append(done.stdout)
    settings = {}
    for name in links():
        with contextlib.suppress(FileNotFoundError):  # the kernel has removed it meanwhile
            settings[name] = forwards(name)
    return [*found, settings]


def open_namespace(tid):
    return os.open(f"/proc/{tid}/ns/net", os.O_RDONLY)
