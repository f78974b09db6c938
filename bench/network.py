"""What a guest's TCP gets through in banger's network, filter and all, against the same guest on a TAP and a bridge made by hand; both alternate.

    python bench/network.py [ROUNDS]

Needs root. The other end is a program in the same namespace as the bridge, at the gateway's address, so that no uplink, no forward and no
relay is in the way: what is compared is the way of frames. Both guests run all the time; the one that is not measured rests.
"""

import asyncio
import os
import shutil
import sys
import tarfile
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from common import installation, report, summary
from create import OPTIONS, bare_disks, bare_qemu, bare_ready
from forward import GUEST, PORT, into, out_of

from banger.host import syscalls
from banger.host.tun import VNET_HEADER, open_tap
from banger.model.machine import VmPaths
from banger.network.plan import BRIDGE, MTU
from banger.network.record import read_record
from tests.framework.net_host import Namespace, ip

LISTENS = f"until ss -Hltn sport = :{PORT} | grep -q .; do sleep 0.2; done"
SERVE = ("sh", "-c", f'systemd-run -q python3 -c "$0" && {LISTENS}', GUEST)


class Inside:
    """A thread in the network namespace of a process; ``run`` calls something there."""

    def __init__(self, pid):
        self._thread = ThreadPoolExecutor(1)
        with Path(f"/proc/{pid}/ns/net").open() as file:
            self.run(syscalls.enter, file.fileno(), syscalls.CLONE_NEWNET)

    def run(self, work, *arguments):
        return self._thread.submit(work, *arguments).result()

    def close(self):
        """End the thread."""
        self._thread.shutdown()


def network_of(identity):
    """What an identity drive says of the network: ADDRESS (with a length) and GATEWAY."""
    with tarfile.open(identity) as archive:
        lines = archive.extractfile("control/network").read().decode().splitlines()
    return dict(line.split("=", 1) for line in lines)


def by_hand(network):
    """A namespace with a bridge at the gateway's address; and a TAP on it, open."""
    length = network["ADDRESS"].partition("/")[2]
    host = Namespace()
    host.run(ip, "link", "add", BRIDGE, "type", "bridge")
    host.run(ip, "addr", "add", f"{network['GATEWAY']}/{length}", "dev", BRIDGE)
    tap = host.run(lambda: open_tap("tap0", flags=VNET_HEADER))
    host.run(ip, "link", "set", "tap0", "mtu", str(MTU), "master", BRIDGE, "up")
    host.run(ip, "link", "set", BRIDGE, "mtu", str(MTU), "up")
    return host, tap


async def serve(target):
    """Start the server in the bare guest."""
    guest = await bare_ready(target)
    session = await guest.exec({"argv": list(SERVE)})
    async for _ in session.frames():
        pass
    await guest.close()


def measure(inside, address):
    """MiB/s into the guest and out of it."""
    return inside.run(into, PORT, address), inside.run(out_of, PORT, address)


def main(rounds):
    """Both guests, in turns."""
    banger = installation()
    ours, theirs = [], []
    try:
        banger.run("vm", "create", "--name", "box", *OPTIONS)
        vm = banger.vm("box")
        paths = VmPaths(banger.state / "vms" / vm["id"], banger.runtime / "vms" / vm["id"])
        argv = Path(f"/proc/{vm['status']['pid']}/cmdline").read_text().split("\0")[:-1]
        banger.run("vm", "exec", "box", "--", *SERVE)
        with tempfile.TemporaryDirectory(prefix="bare-disks-") as disks:
            bare_disks(banger, paths, Path(disks))
            network = network_of(Path(disks) / "identity.tar")
            host, tap = by_hand(network)
            with bare_qemu(argv, paths, Path(disks), tap) as (target, _):
                asyncio.run(serve(target))
                inside = Inside(read_record(banger.runtime / "net" / "network.json").holder.pid)
                address = network["ADDRESS"].partition("/")[0]
                for _ in range(rounds):
                    ours.append(measure(inside, vm["status"]["ip"]))
                    theirs.append(measure(host, address))
                inside.close()
            os.close(tap)
            host.close()
    finally:
        left = banger.close()
        shutil.rmtree(banger.directory, ignore_errors=True)
    result = {}
    for index, way in enumerate(("into_guest", "out_of_guest")):
        mine, bare = (summary([pair[index] for pair in pairs]) for pairs in (ours, theirs))
        result[way] = {
            "mib_per_s": mine,
            "by_hand_mib_per_s": bare,
            "ratio": round(mine["median"] / bare["median"], 3),
        }
    report("network", {**result, "left": left})


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
