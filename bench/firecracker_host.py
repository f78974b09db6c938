"""The host's own work of a create on the real Firecracker, until its guest has been let go, against a bare one that a script starts; both alternate.

    python bench/firecracker_host.py [RUNS]

No guest needs to come up, so any /dev/kvm that makes VMs will do: where the processor hides that it virtualises, and stock kernels hang, banger
is shown a /proc/cpuinfo that has the flag. Run as root, in the jailer, with its files on an xfs in a loop file, where a copy shares its blocks.
The bare side is Firecracker's start, the same requests and InstanceStart.
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import copy_images, discard, installation, reflink_volume, report, summary
from create import HOST_STAGES, OPTIONS

from banger.host import probe
from banger.vmm.firecracker import config
from tests.framework import firecracker_program
from tests.framework.bare_firecracker import BareFirecracker
from tests.framework.installation import CACHE, Installation

AGAIN = "BANGER_BENCH_CPUINFO"
BIND = 'mount --bind "$0" /proc/cpuinfo && exec "$@"'


def show_the_flag():
    """Go on in a mount namespace where the processor says that it virtualises."""
    if AGAIN in os.environ:
        sys.exit(f"error: {probe.kvm().why}")
    with tempfile.NamedTemporaryFile("w", prefix="cpuinfo-", delete=False) as file:
        file.write(Path("/proc/cpuinfo").read_text().replace("flags\t\t:", "flags\t\t: svm"))
    argv = ("unshare", "--mount", "sh", "-c", BIND, file.name, sys.executable, *sys.argv)
    status = subprocess.run(argv, env={**os.environ, AGAIN: "1"}, check=False).returncode
    Path(file.name).unlink()
    sys.exit(status)


def installation_on(volume, programs):
    """A banger whose files, images too, are on ``volume``."""
    discard(installation())  # the tests' image is built
    words = {"firecracker_path": programs.firecracker, "jailer_path": programs.jailer}
    banger = Installation(volume / "banger", **words)
    (banger.state / "images").unlink()
    copy_images(CACHE / "images", banger.state / "images")
    return banger


def ours(banger):
    """Milliseconds of each stage, until the guest has been let go."""
    banger.run("vm", "create", "--name", "timed", "--timeout", "1", *OPTIONS, check=False)
    created = (op for op in banger.json("op", "list") if op["kind"] == "vm.create")
    operation = next(op for op in created if op["target_name"] == "timed")
    stages = {stage["name"]: stage["duration_ms"] for stage in operation["stages"]}
    assert all(name in stages for name in ("vmm", "boot")), operation["error"]
    banger.run("vm", "delete", "timed")
    return {name: stages[name] for name in HOST_STAGES}


def bare(program, image):
    """Milliseconds from the start of the process until InstanceStart is answered."""
    directory = Path(tempfile.mkdtemp(prefix="bare-"))
    BareFirecracker.prepare_in(directory, image)
    began = time.monotonic()
    vmm = BareFirecracker(program, directory)
    try:
        vmm.configure(image, boot_args=config.cmdline("rw"), vcpus=2, memory_mib=1024)
        vmm.start()
        return (time.monotonic() - began) * 1000
    finally:
        vmm.close()
        shutil.rmtree(directory)


def main(runs):
    """Alternate, after one of each that is not counted."""
    programs, why = firecracker_program.programs()
    if why or not probe.root():
        sys.exit(f"error: {why or probe.root().why}")
    if not probe.kvm():
        show_the_flag()
    stages, theirs = [], []
    with reflink_volume() as volume:
        banger = installation_on(volume, programs)
        image = banger.state / "images" / banger.json("image", "show", "debian")["id"]
        try:
            for _ in range(runs + 1):
                theirs.append(bare(programs.firecracker, image))
                stages.append(ours(banger))
        finally:
            left = banger.close()
    del stages[0], theirs[0]
    report(
        "firecracker_host",
        {
            "firecracker": str(programs.version),
            "host_work_ms": summary([sum(run.values()) for run in stages]),
            "bare_start_ms": summary(theirs),
            "stages_ms": {n: summary([run[n] for run in stages])["median"] for n in HOST_STAGES},
            "left": left,
        },
    )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 9)
