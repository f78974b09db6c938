"""Create until ready on the real Firecracker, and the host's own work, against a bare one that a script configures; both alternate.

    python bench/firecracker.py [RUNS]                   where KVM is
    scripts/testhost.sh bench/firecracker.py [RUNS]      anywhere, in a test host

The bare side has the same kernel, initramfs, command line, sizes and readiness probe: the agent's healthz until every service answers. It
has no jail, no network, no daemon and no stages; that its disks were made is not counted. One vCPU, because an emulated SVM now and then ends a
nested guest of two with a triple fault.
"""

import asyncio
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

from common import installation, report, summary
from create import HOST_STAGES, create_ready

from banger.guest.connection import connect_guest
from banger.host import probe
from banger.model.machine import VmPaths
from banger.vmm.firecracker import config
from tests.framework import firecracker_program
from tests.framework.bare_firecracker import BareFirecracker
from tests.framework.installation import CACHE

READY_S = 300


def bare(program, image):
    """Milliseconds from the start of the process until ready."""
    directory = Path(tempfile.mkdtemp(prefix="bare-"))
    BareFirecracker.prepare_in(directory, image)
    began = time.monotonic()
    vmm = BareFirecracker(program, directory)

    async def ready():
        guest = connect_guest(VmPaths(directory, directory), "vsock")
        await guest.wait_connected(READY_S)
        await guest.wait_services(READY_S)
        await guest.close()

    try:
        vmm.configure(image, boot_args=config.cmdline("rw"), vcpus=1, memory_mib=1024)
        vmm.start()
        asyncio.run(ready())
        return (time.monotonic() - began) * 1000
    finally:
        vmm.close()
        shutil.rmtree(directory)


def main(runs):
    """Alternate, after one of each that is not counted."""
    programs, why = firecracker_program.programs()
    for reason in (why, *(answer.why for answer in (probe.kvm(), probe.root()) if not answer)):
        if reason:
            sys.exit(f"error: {reason}")
    banger = installation(firecracker_path=programs.firecracker, jailer_path=programs.jailer)
    image = CACHE / "images" / banger.json("image", "show", "debian")["id"]
    ours, theirs = [], []
    try:
        for _ in range(runs + 1):
            theirs.append(bare(programs.firecracker, image))
            ours.append(create_ready(banger, "timed", "--vcpus", "1", "--timeout", "300"))
            banger.run("vm", "delete", "timed")
    finally:
        left = banger.close()
        shutil.rmtree(banger.directory, ignore_errors=True)
    ours, theirs = ours[1:], theirs[1:]
    walls = summary([wall for wall, _ in ours])
    stages = [stages for _, stages in ours]
    report(
        "firecracker",
        {
            "firecracker": str(programs.version),
            "processor": "emulated" if os.environ.get("BANGER_TEST_HOST") else "real",
            "ready_ms": walls,
            "bare_ready_ms": summary(theirs),
            "ratio": round(walls["median"] / summary(theirs)["median"], 3),
            "host_work_ms": summary([sum(run[name] for name in HOST_STAGES) for run in stages]),
            "stages_ms": {
                name: summary([run[name] for run in stages])["median"] for name in stages[0]
            },
            "left": left,
        },
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
