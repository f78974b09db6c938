"""What a host has that banger or its tests could leave behind."""

import os
import subprocess
from pathlib import Path

PROGRAMS = ("qemu-system", "slirp4netns", "pasta", "bangerd", "banger.daemon", "banger.network", "banger_agent", "mmdebstrap")  # fmt: skip
PREFIXES = ("bgr-", "banger-", "bare-", "bench-")


def _processes():
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                words = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if not dead and any(program in words for program in PROGRAMS):
                found.add(f"process {entry.name}: {words[:200]}")
    return found


def _lines(*argv):
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    return set(done.stdout.splitlines()) if done.returncode == 0 else set()


def inventory():
    """Processes, network interfaces and addresses, nft tables, mounts, loop devices and temporary directories, each as a sentence."""
    mounts = {f"mount {line.split()[1]}" for line in Path("/proc/mounts").read_text().splitlines()}
    interfaces = {f"interface {name}" for name in os.listdir("/sys/class/net")}
    loops = {
        f"loop device {line}" for line in _lines("losetup", "--noheadings", "-O", "NAME,BACK-FILE")
    }
    tables = {f"nft {line}" for line in _lines("nft", "list", "tables")}
    temporary = {f"/tmp/{name}" for name in os.listdir("/tmp") if name.startswith(PREFIXES)}
    return _processes() | mounts | interfaces | loops | tables | temporary
