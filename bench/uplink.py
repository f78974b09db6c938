"""An uplink from banger-helper, with one and with sixty of them; and a VM's attachment in both modes, with a TAP of the pool and without.

On a host of the benchmark's own (a network namespace); needs root.

python bench/uplink.py [RUNS]
"""

# ruff: noqa: SLF001  it measures parts of one call
import asyncio
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import report, summary

from banger.network.bridge import BridgeNetwork
from banger.network.uplinks.client import HostUplinks
from banger.network.uplinks.service import UplinkService
from banger.network.uplinks.slots import SlotPlan
from banger.network.user import UserNetwork
from banger.wire.helper import ask
from tests.framework.helper_host import running_helper
from tests.framework.net_host import OwnHost

POOL = 4
SETTLE_S = 0.1  # the helper looks at the host after each change; that is not its caller's time


async def timed(work, times):
    """The result of ``work``; how many milliseconds it took goes to ``times``."""
    began = time.monotonic()
    result = await work
    times.append((time.monotonic() - began) * 1000)
    return result


def namespace():
    """A process in namespaces of its own, and a descriptor of its network."""
    argv = ["unshare", "--user", "--map-root-user", "--net", "--", "sh", "-c", "echo; read end"]
    process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    process.stdout.readline()
    return process, os.open(f"/proc/{process.pid}/ns/net", os.O_RDONLY)


async def uplinks(directory):
    """Attach and detach, few and many."""
    found = {"hello": [], "attach_first_10": [], "attach_of_51_to_60": [], "detach": []}
    async with running_helper(directory, quota=64) as helper:
        made = []
        for number in range(60):
            made.append(namespace())
            key = "attach_first_10" if number < 10 else "attach_of_51_to_60"
            times = found[key] if number < 10 or number >= 50 else []
            await timed(ask(helper.socket, "uplink.attach", descriptors=[made[-1][1]]), times)
            await asyncio.sleep(SETTLE_S)
        for slot in range(1, 11):
            await timed(ask(helper.socket, "hello"), found["hello"])
            await timed(ask(helper.socket, "uplink.detach", slot=slot), found["detach"])
            await asyncio.sleep(SETTLE_S)
        for process, descriptor in made:
            os.close(descriptor)
            process.communicate()
    return {key: summary(times) for key, times in found.items()}


async def taps(directory, mode, runs):
    """A VM's attachment: the first one, which brings the network up, and further ones: by a TAP of the pool, by one that is made, and of a
    guest that the filter is not prepared for. Then, apart, the TAP of the pool, the one that is made, and an entry in the filter.
    """
    local = HostUplinks(directory / "none.sock", UplinkService(directory / "helper", SlotPlan()))
    bridge = mode == "bridge"
    network = BridgeNetwork(directory, directory, local, pool=POOL) if bridge else UserNetwork(directory, directory, pool=POOL)  # fmt: skip
    await network.start()
    await network.describe()
    found = {key: [] for key in ("first", "pooled", "made", "unprepared", "tap_pooled", "tap_made", "filter_entry")}  # fmt: skip
    leases, open_taps = [], []

    def lease():
        leases.append(network.plan_lease(f"{len(leases):012x}", leases))
        return leases[-1]

    async def attach(*, outward=True):
        settled, _ = await network.settle(lease(), mode)
        attached = await network.attach(settled, mode, named=False, outward=outward)
        open_taps.append(attached.tap_fd)

    async def prepare(*, pooled):
        space = network._space
        while len(space.taps.pooled) < POOL or space._refilling:
            await asyncio.sleep(0.01)
        taken = [] if pooled else list(space.taps._pool)
        if taken:
            space.taps._pool.clear()
        return taken

    await timed(attach(), found["first"])
    for number in range(runs):
        for key, pooled, outward in (("pooled", True, True), ("made", False, True), ("unprepared", False, False)):  # fmt: skip
            taken = await prepare(pooled=pooled)
            await timed(attach(outward=outward), found[key])
            network._space.taps._pool[:0] = taken
        for key, pooled in (("tap_pooled", True), ("tap_made", False)):
            taken = await prepare(pooled=pooled)
            settled, _ = await network.settle(lease(), mode)
            plug = network._space.taps.plug(settled)
            open_taps.append(await timed(plug, found[key]))
            network._space.taps._pool[:0] = taken
            network._space._refill()
        settled, _ = await network.settle(leases[number], mode)
        outward = not network._space.outward(settled)
        await timed(network._space._gate.set_outward(settled, outward=outward), found["filter_entry"])  # fmt: skip
    for descriptor in open_taps:
        os.close(descriptor)
    await network.stop(if_unused=False)
    await network.close()
    await local.close()
    return {key: summary(times) for key, times in found.items()}


async def main(runs):
    """All of it, on a host of its own."""
    host = OwnHost()
    directory = Path(tempfile.mkdtemp(prefix="bench-"))
    try:
        result = {"uplinks": await uplinks(directory)}
        for mode in ("user", "bridge"):
            (directory / mode).mkdir()
            result[mode] = await taps(directory / mode, mode, runs)
    finally:
        shutil.rmtree(directory)
        host.close()
    report("uplink", result)


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 30))
