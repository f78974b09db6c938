"""What a host has that banger or its tests could leave behind."""

import contextlib
import os
import shutil
import subprocess
from pathlib import Path

PROGRAMS = ("qemu-system", "firecracker --", "jailer --", "slirp4netns", "pasta", "bangerd", "banger.daemon", "banger.network", "banger_agent", "mmdebstrap")  # fmt: skip
PREFIXES = ("bgr-", "banger-", "bare-", "bench-")
CHECKOUT = Path(__file__).parents[2]


def _processes():
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                if entry.stat().st_uid != os.geteuid():
                    continue  # somebody else's
                words = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
                dead = (entry / "stat").read_text().rpartition(")")[2].split()[0] == "Z"
            except OSError:
                continue
            if not dead and any(program in words for program in PROGRAMS):
                found.add(f"process {entry.name}: {words[:200]}")
    return found


def _loops():
    found = set()
    for path in Path("/sys/block").glob("loop*/loop/backing_file"):
        with contextlib.suppress(OSError):  # let go just now
            found.add(f"loop device over {path.read_text().strip()}")
    return found


def _mappings():
    """By dmsetup: one that never got a table is in no directory of /sys."""
    dmsetup = shutil.which("dmsetup", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if dmsetup is None or os.geteuid() != 0:
        return set()
    done = subprocess.run([dmsetup, "ls"], capture_output=True, text=True, check=False)
    return {f"device mapping {line.split()[0]}" for line in done.stdout.splitlines() if "\t" in line}  # fmt: skip


def _tables():
    nft = shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin")
    if nft is None or os.geteuid() != 0:
        return set()  # an ordinary user can neither see nor make the host's
    done = subprocess.run([nft, "list", "tables"], capture_output=True, text=True, check=True)
    return {f"nft {line}" for line in done.stdout.splitlines()}


def _temporary():
    found = set()
    for path in Path("/tmp").iterdir():
        with contextlib.suppress(FileNotFoundError):  # another run's, and gone
            if path.name.startswith(PREFIXES) and path.lstat().st_uid == os.geteuid():
                found.add(str(path))
    return found


def _checkout():
    """Files that a command wrote into its working directory; caches and what is built have names that are known."""
    names = set(os.listdir(CHECKOUT)) - {"build"}
    return {f"file {CHECKOUT / name}" for name in names if not name.startswith(".")}


def inventory():
    """Processes, network interfaces, nft tables, mounts, loop devices, mappings, temporary directories and files of the checkout, each as a sentence."""
    mounts = {f"mount {line.split()[1]}" for line in Path("/proc/mounts").read_text().splitlines()}
    interfaces = {f"interface {name}" for name in os.listdir("/sys/class/net")}
    return (
        _processes()
        | mounts
        | interfaces
        | _loops()
        | _mappings()
        | _tables()
        | _temporary()
        | _checkout()
    )
