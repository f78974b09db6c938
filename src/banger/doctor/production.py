"""What a host should have before strangers' code runs in its VMs: the advice of Firecracker's guide and of the kernel's own documents.

Nothing here keeps a VM from running. Files are read below a directory, so that tests have hosts of their own.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from banger.bundle.locate import find_binaries
from banger.doctor.check import Check, Skip
from banger.host.config import Config
from banger.host.exec import run_sync
from banger.host.namespaces import probe_namespaces
from banger.host.probe import Answer
from banger.model.errors import HostLacksError
from banger.model.units import format_size

GUIDE = "Firecracker, docs/prod-host-setup.md"
KERNEL = "Linux, Documentation/admin-guide"
_CPU = "sys/devices/system/cpu"
_REMOUNT_S = 10.0
_FAVORDYNMODS_SINCE = (6, 1)
Ask = Callable[["Host"], Answer | Skip]


@dataclass(frozen=True, slots=True)
class Host:
    """The host whose files lie below ``root``."""

    config: Config
    root: Path = Path("/")

    def text(self, path: str) -> str | None:
        """What the kernel says in this file; None if there is none."""
        try:
            return (self.root / path).read_text(errors="replace").strip()
        except OSError:
            return None

    @property
    def is_guest(self) -> bool:
        """Whether this host is itself a VM."""
        return "hypervisor" in _flags(self.text("proc/cpuinfo") or "")

    @property
    def release(self) -> tuple[int, int]:
        """Major and minor number of the kernel."""
        found = re.match(r"(\d+)\.(\d+)", self.text("proc/sys/kernel/osrelease") or "")
        return (int(found[1]), int(found[2])) if found else (0, 0)


def _flags(cpuinfo: str) -> list[str]:
    return next((line.split() for line in cpuinfo.splitlines() if line.startswith("flags")), [])


def _smt(host: Host) -> Answer | Skip:
    control = host.text(f"{_CPU}/smt/control")
    if control is None:
        return Skip("the kernel does not say")
    if host.text(f"{_CPU}/smt/active") == "0" or control in {
        "off",
        "forceoff",
        "notsupported",
        "notimplemented",
    }:
        return Answer(ok=True, found=f"threads of a core are off ({control})")
    return Answer(ok=False, why="two threads share a core", hint="boot this host with nosmt=force")


def _ksm(host: Host) -> Answer | Skip:
    if host.text("sys/kernel/mm/ksm/run") in {None, "0"}:
        return Answer(ok=True, found="off")
    return Answer(
        ok=False,
        why="equal pages of VMs are merged",
        hint="banger doctor --production --fix  (as root)",
    )


def _ksm_off(host: Host) -> str:
    (host.root / "sys/kernel/mm/ksm/run").write_text("0")
    return "switched kernel same-page merging off (until the next boot)"


def _swap(host: Host) -> Answer | Skip:
    lines = (host.text("proc/swaps") or "").splitlines()[1:]
    disks = [
        name for name in (line.split()[0] for line in lines) if not name.startswith("/dev/zram")
    ]
    if not disks:
        return Answer(ok=True, found="none on a disk")
    return Answer(
        ok=False,
        why=f"memory of VMs may be written to {', '.join(disks)}",
        hint="sudo swapoff -a, and take it out of /etc/fstab",
    )


def _vulnerabilities(host: Host) -> Answer | Skip:
    directory = host.root / _CPU / "vulnerabilities"
    if not directory.is_dir():
        return Skip("the kernel does not say")
    found = {
        path.name: path.read_text(errors="replace").strip() for path in sorted(directory.iterdir())
    }
    bad = [f"{name}: {text}" for name, text in found.items() if text.startswith("Vulnerable")]
    if not bad:
        return Answer(
            ok=True, found=f"{len(found)} known faults of processors, each mitigated or absent"
        )
    hint = "install the newest kernel and microcode (amd64-microcode, intel-microcode), then boot"
    return Answer(ok=False, why="\n".join(bad), hint=hint)


def _cmdline(host: Host) -> Answer | Skip:
    words = (host.text("proc/cmdline") or "").split()
    off = [
        word
        for word in words
        if word
        in {
            "mitigations=off",
            "nopti",
            "pti=off",
            "nospectre_v2",
            "nospectre_v1",
            "spectre_v2=off",
            "l1tf=off",
            "mds=off",
        }
    ]
    if not off:
        return Answer(ok=True, found="none is switched off")
    return Answer(
        ok=False,
        why=f"this kernel was booted with {' '.join(off)}",
        hint="take that off the kernel's command line, then boot",
    )


def _microcode(host: Host) -> Answer | Skip:
    if host.is_guest:
        return Skip("this host is a VM: its own host loads microcode")
    found = re.search(r"^microcode\s*:\s*(\S+)", host.text("proc/cpuinfo") or "", re.MULTILINE)
    if not found:
        return Skip("the kernel does not say")
    return Answer(ok=True, found=f"revision {found[1]}; whether it is the newest its maker knows")


def _ecc(host: Host) -> Answer | Skip:
    if host.is_guest:
        return Skip("this host is a VM: only its own host knows its memory")
    if list((host.root / "sys/devices/system/edac/mc").glob("mc[0-9]*")):
        return Answer(ok=True, found="errors are corrected (ECC)")
    return Answer(
        ok=False,
        why="no memory controller that corrects errors is seen",
        hint="use memory with ECC and target row refresh; or load the driver: sudo modprobe amd64_edac",
    )


def _favordynmods(host: Host) -> Answer | Skip:
    if host.release < _FAVORDYNMODS_SINCE:
        return Skip("only kernels since 6.1 need it")
    mount = next(
        (
            line
            for line in (host.text("proc/self/mountinfo") or "").splitlines()
            if " - cgroup2 " in line
        ),
        None,
    )
    if mount is None:
        return Skip("cgroup v2 is not mounted")
    if "favordynmods" in mount.rpartition(" ")[2].split(","):
        return Answer(ok=True, found="cgroups are made for quick changes")
    return Answer(
        ok=False,
        why="moving a VMM into its cgroup waits for the whole host",
        hint="banger doctor --production --fix  (as root)",
    )


def _remount(host: Host) -> str:
    del host
    run_sync(["mount", "-o", "remount,favordynmods", "/sys/fs/cgroup"], timeout_s=_REMOUNT_S)
    return "mounted cgroups with favordynmods (until the next boot)"


def _nx_huge_pages(host: Host) -> Answer | Skip:
    value = host.text("sys/module/kvm/parameters/nx_huge_pages")
    if value is None:
        return Skip("the module kvm is not loaded")
    affected = not (host.text(f"{_CPU}/vulnerabilities/itlb_multihit") or "").startswith(
        "Not affected"
    )
    if affected and value in {"N", "0", "never"}:
        return Answer(
            ok=False,
            why=f"nx_huge_pages is {value}, and a guest may hang this processor",
            hint="boot with kvm.nx_huge_pages=auto",
        )
    if not affected and value != "never" and host.release >= _FAVORDYNMODS_SINCE:
        return Answer(
            ok=False,
            why=f"nx_huge_pages is {value}: every VM's start waits for a thread that this processor does not need",
            hint="boot with kvm.nx_huge_pages=never",
        )
    return Answer(ok=True, found=value)


def _kvm_pit(host: Host) -> Answer | Skip:
    stray, threads = [], 0
    for path in (host.root / "proc").glob("[0-9]*/comm"):
        name = host.text(str(path.relative_to(host.root))) or ""
        if name.startswith("kvm-pit/"):
            threads += 1
            group = host.text(str(path.with_name("cgroup").relative_to(host.root))) or ""
            stray += [name] if group.rpartition(":")[2] == "/" else []
    if not threads:
        return Skip("no VM with KVM's own timer runs")
    if not stray:
        return Answer(ok=True, found=f"{threads} in the cgroups of their VMs")
    return Answer(
        ok=False,
        why=f"their time is nobody's: {', '.join(stray)}",
        hint="move each into its VM's cgroup: echo PID | sudo tee /sys/fs/cgroup/banger/VM/cgroup.procs",
    )


def _metadata(host: Host) -> Answer | Skip:
    del host
    answer = probe_namespaces()
    if answer:
        return Answer(ok=True, found="169.254.169.254 is closed to guests by banger's filter")
    return Answer(
        ok=False,
        why="guests on QEMU's own network reach 169.254.169.254, where clouds keep this host's credentials",
        hint=answer.hint,
    )


def _jailer(host: Host) -> Answer | Skip:
    if os.geteuid() != 0:
        return Answer(
            ok=False,
            why="an ordinary user's VMs share that user's id; banger's own confinement takes the jailer's place",
            hint="run bangerd as root, whose VMs get a user id each",
        )
    try:
        found = find_binaries(host.config, warn=lambda _: None)
    except HostLacksError as error:
        return Skip(error.what)
    if found.jailer is None:
        return Answer(
            ok=False,
            why=f"there is no jailer beside {found.firecracker}",
            hint="banger runtime fetch",
        )
    return Answer(ok=True, found=str(found.jailer))


def _logs(host: Host) -> Answer | Skip:
    cap = host.config.console_log_max_bytes
    return Answer(ok=True, found=f"the daemon cuts each VM's console and log at {format_size(cap)}")


def _check(
    name: str,
    ask: Ask,
    without: str,
    source: str,
    fix: Callable[[Host], str] | None = None,
    *,
    root: Path,
) -> Check:
    def asked(config: Config) -> Answer | Skip:
        return ask(Host(config, root))

    mend = None if fix is None else (lambda config: fix(Host(config, root)))
    return Check(name, asked, without, source=source, fix=mend, fixed_by_root=fix is not None)


def checks(root: Path = Path("/")) -> tuple[Check, ...]:
    """All of them, for the host whose files lie below ``root``."""
    make = partial(_check, root=root)
    return (
        make("smt", _smt, "a guest may read what a sibling thread computes", GUIDE),
        make("mitigations", _vulnerabilities, "a guest may read memory that is not its own", f"{KERNEL}/hw-vuln"),
        make("kernel switches", _cmdline, "a guest may read memory that is not its own", f"{KERNEL}/kernel-parameters.txt"),
        make("microcode", _microcode, "mitigations lack what they need of the processor", GUIDE),
        make("same-page merging", _ksm, "a guest learns by its own timing which pages others have", GUIDE, _ksm_off),
        make("swap", _swap, "what a guest had in memory outlives it on the disk", GUIDE),
        make("memory", _ecc, "a guest may flip bits of others (Rowhammer)", GUIDE),
        make("cgroup moves", _favordynmods, "starting a VM takes tens of milliseconds longer", f"{KERNEL}/cgroup-v2.rst; {GUIDE}", _remount),
        make("nx_huge_pages", _nx_huge_pages, "guests hang the host, or start slower than they need to", f"{KERNEL}/hw-vuln/multihit.rst; {GUIDE}"),
        make("kvm-pit threads", _kvm_pit, "a guest uses processor time that its limits do not count", GUIDE),
        make("metadata address", _metadata, "guests read the credentials that a cloud gives this host", GUIDE),
        make("jailer", _jailer, "who leaves a VMM meets one user's other VMs", GUIDE),
        make("logs", _logs, "a guest fills this host's disk", GUIDE),
    )  # fmt: skip
