"""An uplink from banger-helper, with one and with sixty of them; and a VM's attachment in both modes, its filter entry and its TAP apart.

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
from banger.network.control import ask_one
from banger.network.plan import tap_name
from banger.network.uplinks.client import HostUplinks
from banger.network.uplinks.service import UplinkService
from banger.network.uplinks.slots import SlotPlan
from banger.network.user import UserNetwork
from banger.wire.helper import ask
from tests.framework.helper_host import running_helper
from tests.framework.net_host import OwnHost

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
    """A VM's attachment: the first one, which brings the network up, and further ones; of those the filter entry and the TAP alone."""
    local = HostUplinks(directory / "none.sock", UplinkService(directory / "helper", SlotPlan()))
    bridge = mode == "bridge"
    network = BridgeNetwork(directory, directory, local) if bridge else UserNetwork(directory, directory)  # fmt: skip
    await network.start()
    await network.describe()
    found = {"first": [], "further": [], "filter_entry": [], "tap": []}
    leases, open_taps = [], []

    async def attach(lease):
        lease, _ = await network.settle(lease, mode)
        return await network.attach(lease, mode, named=False)

    async def tap_alone(space, lease):
        descriptor = await ask_one(space._files.control, "tap", name=tap_name(lease))
        space._connect(lease)
        return descriptor

    for number in range(1 + 2 * runs):
        lease = network.plan_lease(f"{number:012x}", leases)
        leases.append(lease)
        if number <= runs:
            attached = await timed(attach(lease), found["further" if number else "first"])
            open_taps.append(attached.tap_fd)
        else:
            await timed(network._space._pin(lease, outward=True), found["filter_entry"])
            open_taps.append(await timed(tap_alone(network._space, lease), found["tap"]))
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
