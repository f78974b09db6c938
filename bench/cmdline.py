"""What words on the kernel command line, and the form of the kernel, cost or save until init runs; all boots alternate.

    python bench/cmdline.py [RUNS]

Each variant is an image that `image register` makes of the debian image with another --cmdline. A word that banger sets by itself is
taken back by one behind it. Measured is what QEMU has used when the guest says that it hands over to init: processor time, which other
work on the machine disturbs least, and time. One CPU, so that none waits for another.
"""

import json
import os
import sys
import time
from pathlib import Path

from common import installation, report, summary

MARK = b"banger: booted"
TICK_MS = 1000 / os.sysconf("SC_CLK_TCK")
I8042 = "i8042.noaux i8042.nokbd i8042.nomux i8042.dumbkbd"
VARIANTS = {
    "as-shipped": "rw",
    "chatty-console": "rw loglevel=7",
    "crypto-self-tests": "rw cryptomgr.notests=0",
    "cpu-not-trusted": "rw random.trust_cpu=off",
    "i8042-not-probed": f"rw {I8042}",
    "clock-by-ticks": "rw tsc=unstable",
    "one-uart": "rw 8250.nr_uarts=1",
    "no-pci": "rw pci=off",
    "bzimage": "rw",
}


OPTIONS = ("--vcpus", "1", "--memory", "512M", "--work-size", "1G", "--no-wait")


def prepare(banger, name, cmdline):
    """Register the variant's image; that of the bzImage says that its ELF kernel cannot be entered."""
    image = f"variant-{name}"
    words = ("--from", "debian", "--cmdline", cmdline, "--replace")
    banger.run("image", "register", "--name", image, *words)
    if name == "bzimage":
        made = banger.json("image", "show", image)
        path = banger.state / "images" / made["id"] / "manifest.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "pvh": False}))
    return image


def boot(banger, image):
    """Milliseconds of processor time and of time from QEMU's start until the mark."""
    banger.run("vm", "create", "--name", "one", "--image", image, *OPTIONS)  # fmt: skip
    vm = banger.vm("one")
    console = banger.state / "vms" / vm["id"] / "console.log"
    while not (vm["status"]["pid"]):
        vm = banger.vm("one")
    while MARK not in (console.read_bytes() if console.exists() else b""):
        time.sleep(0.002)
    fields = Path(f"/proc/{vm['status']['pid']}/stat").read_text().rpartition(")")[2].split()
    up_ms = float(Path("/proc/uptime").read_text().split()[0]) * 1000
    cpu_ms = (int(fields[11]) + int(fields[12])) * TICK_MS
    elapsed_ms = up_ms - int(fields[19]) * TICK_MS
    banger.run("vm", "delete", "one")
    return cpu_ms, elapsed_ms


def main(runs):
    """All variants in turns."""
    banger = installation()
    try:
        images = {name: prepare(banger, name, cmdline) for name, cmdline in VARIANTS.items()}
        found = {name: ([], []) for name in VARIANTS}
        for _ in range(runs):
            for name, image in images.items():
                for values, value in zip(found[name], boot(banger, image), strict=True):
                    values.append(value)
        report(
            "cmdline",
            {
                name: {"cmdline": VARIANTS[name], "cpu_ms": summary(cpu), "elapsed_ms": summary(elapsed)}
                for name, (cpu, elapsed) in found.items()
            },
        )  # fmt: skip
    finally:
        banger.run("vm", "delete", "--all", check=False)
        for item in banger.json("image", "list"):
            if item["name"].startswith("variant-"):
                banger.run("image", "delete", item["id"], check=False)
        banger.close()


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
