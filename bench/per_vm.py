"""What one more running VM costs the daemon, on QEMU and on Firecracker's backend (a stand-in with QEMU plays it): private memory, descriptors, threads.

python bench/per_vm.py [VMS]
"""

import shutil
import sys
import tempfile
import time
from pathlib import Path

from common import installation, report

from tests.framework.played import played_firecracker

SETTLE_S = 3


def footprint(pid):
    """Private KiB, descriptors and threads of a process."""
    process = Path(f"/proc/{pid}")
    rollup = dict(
        line.split(":", 1) for line in (process / "smaps_rollup").read_text().splitlines()[1:]
    )
    kib = sum(int(rollup[f"Private_{kind}"].split()[0]) for kind in ("Clean", "Dirty"))
    return kib, *(len(list((process / kind).iterdir())) for kind in ("fd", "task"))


def measure(vms, **settings):
    """The growth by one VM, after a first one that is not counted."""
    banger = installation(**settings)
    options = ("--memory", "256M", "--work-size", "1G")
    try:
        banger.run("vm", "create", "--name", "first", *options)
        time.sleep(SETTLE_S)
        before = footprint(banger.daemon_pid())
        for number in range(vms):
            banger.run("vm", "create", "--name", f"vm-{number}", *options)
        time.sleep(SETTLE_S)
        after = footprint(banger.daemon_pid())
        vmms = {vm["status"]["vmm"] for vm in banger.json("vm", "list")}
    finally:
        left = banger.close()
        shutil.rmtree(banger.directory, ignore_errors=True)
    kib, files, threads = (round((b - a) / vms, 1) for a, b in zip(before, after, strict=True))
    return {
        "vmm": sorted(vmms), "memory_kib": kib, "descriptors": files, "threads": threads,
        "daemon_kib": after[0], "left": left,
    }  # fmt: skip


def main(vms):
    """One backend after the other."""
    with tempfile.TemporaryDirectory(prefix="per-vm-") as directory:
        program = played_firecracker(Path(directory))
        result = {
            "vms": vms,
            "qemu": measure(vms, firecracker_path="/nonexistent/firecracker"),
            "firecracker": measure(vms, firecracker_path=program, confine="off"),
        }
    report("per_vm", result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 8)
