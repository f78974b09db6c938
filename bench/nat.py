"""Changing NAT of one VM of many, and opening a UDP flow into one: a network of banger's with TAPs and no VMMs. Needs root.

python bench/nat.py [VMS [ROUNDS]]
"""

import asyncio
import json
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from common import report, summary

from banger.host.exec import run
from banger.host.namespaces import enter
from banger.model.spec import ForwardProtocol
from banger.network.user import UserNetwork
from tests.framework.net_host import OwnHost

VMS = int(sys.argv[1]) if len(sys.argv) > 1 else 200
ROUNDS = int(sys.argv[2]) if len(sys.argv) > 2 else 50


async def timed(work):
    """Milliseconds, and what it gave."""
    began = time.monotonic()
    value = await work
    return 1e3 * (time.monotonic() - began), value


async def rules(network):
    """How many rules the filter has."""
    async with network._space._inside() as inside:  # noqa: SLF001  there is no public way in
        argv = [*enter(inside), "nft", "-j", "list", "ruleset"]
        done = await run(argv, timeout_s=10, pass_fds=inside.descriptors)
    return sum("rule" in each for each in json.loads(done.stdout)["nftables"])


async def attached(network, leases):
    """One VM more."""
    leases.append(network.plan_lease(f"{len(leases):012x}", leases))
    return (await network.attach(leases[-1], "auto", named=False)).tap_fd


async def measure(directory):
    """All of it."""
    network = UserNetwork(directory, directory)
    await network.start()
    leases, taps, off, on, flows = [], [], [], [], []
    try:
        taps.append(await attached(network, leases))
        rules_of_one = await rules(network)
        while len(leases) < VMS:
            taps.append(await attached(network, leases))
        for number in range(ROUNDS):
            lease = leases[number * 7 % VMS]
            off.append((await timed(network.set_outward(lease, outward=False)))[0])
            await asyncio.sleep(0.05)  # for the kernel to forget its connections
            on.append((await timed(network.set_outward(lease, outward=True)))[0])
            ms, opened = await timed(network.dial(lease, 53, protocol=ForwardProtocol.UDP))
            flows.append(ms)
            opened.close()
        return {
            "vms": VMS,
            "nat_off_ms": summary(off),
            "nat_on_ms": summary(on),
            "rules": {"vms_1": rules_of_one, f"vms_{VMS}": await rules(network)},
            "udp_flow_ms": summary(flows),
        }
    finally:
        await network.stop(if_unused=False)
        await network.close()
        for tap in taps:
            os.close(tap)


def main():
    """On a host of its own."""
    host = OwnHost()
    directory = Path(tempfile.mkdtemp(prefix="bgn-", dir="/tmp"))
    try:
        result = asyncio.run(measure(directory))
    finally:
        shutil.rmtree(directory)
        host.close()
    report("nat", result)


if __name__ == "__main__":
    main()
