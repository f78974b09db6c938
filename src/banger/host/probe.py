"""Can this host…? One question a function, answered by doing it. Doctor, run-time paths and test skips share the answers.

Answers about the machine are cached for the life of the process; ``forget`` asks anew.
"""

from __future__ import annotations

import fcntl
import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from banger.host import fs
from banger.host.exec import find_program, run_sync
from banger.model.errors import BangerError, CommandFailedError

_KVM_GET_API_VERSION, _KVM_CREATE_VM, _KVM_CREATE_VCPU = 0xAE00, 0xAE01, 0xAE41  # linux/kvm.h
_KVM_API_VERSION = 12
_LOOP_CTL_GET_FREE = 0x4C82  # linux/loop.h
_QUERY_S = 20.0
MIN_QEMU = (7, 0)
QEMU_PROGRAM, QEMU_PACKAGE = "qemu-system-x86_64", "qemu-system-x86"
_INSTALL_QEMU = f"sudo apt-get install {QEMU_PACKAGE}"


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether it can; if not why, and one next step. ``found`` says what it is that can (a program's path), if anything."""

    ok: bool
    why: str = ""
    hint: str = ""
    found: str = ""

    def __bool__(self) -> bool:
        return self.ok


def forget() -> None:
    """Ask anew from now on: the host has changed."""
    kvm.cache_clear()
    qemu.cache_clear()
    device_mapper.cache_clear()


@cache
def kvm() -> Answer:
    """Whether KVM runs guests here. A /dev/kvm that opens is not enough: on x86 the CPU must have svm or vmx, and
    a VM with a vCPU must really come into being.
    """
    if platform.machine() in {"x86_64", "i686"} and not cpu_virtualizes(
        Path("/proc/cpuinfo").read_text()
    ):
        return Answer(
            ok=False,
            why="the CPU shows neither svm nor vmx",
            hint="switch virtualisation on in the firmware, or nested virtualisation on the host of this VM",
        )
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return Answer(
            ok=False,
            why="/dev/kvm: permission denied",
            hint="sudo usermod -aG kvm $USER, then log in again",
        )
    except OSError as error:
        return Answer(ok=False, why=f"/dev/kvm: {error.strerror}", hint="sudo modprobe kvm")
    try:
        return _create_vm(device)
    finally:
        os.close(device)


def cpu_virtualizes(cpuinfo: str) -> bool:
    """Whether the text of /proc/cpuinfo names AMD's svm or Intel's vmx among the first CPU's flags."""
    flags = re.search(r"^flags\s*:(.*)$", cpuinfo, re.MULTILINE)
    return flags is not None and not {"svm", "vmx"}.isdisjoint(flags[1].split())


def _create_vm(device: int) -> Answer:
    opened = []
    try:
        if fcntl.ioctl(device, _KVM_GET_API_VERSION) != _KVM_API_VERSION:
            return Answer(ok=False, why="/dev/kvm speaks another API version")
        opened.append(fcntl.ioctl(device, _KVM_CREATE_VM, 0))
        opened.append(fcntl.ioctl(opened[0], _KVM_CREATE_VCPU, 0))
    except OSError as error:
        return Answer(
            ok=False,
            why=f"KVM cannot make a VM: {error.strerror}",
            hint="sudo dmesg | grep -i kvm",
        )
    finally:
        for descriptor in reversed(opened):
            with suppress(OSError):
                os.close(descriptor)
    return Answer(ok=True, found="/dev/kvm")


@cache
def qemu(program: str | None = None) -> Answer:
    """Whether a QEMU is here that banger can use: new enough, with the microvm machine, emulation and the sandbox."""
    try:
        path = program or find_program(QEMU_PROGRAM, package=QEMU_PACKAGE)
        version, machines, accelerators, usage = (
            _ask(path, *words)
            for words in (("--version",), ("-machine", "help"), ("-accel", "help"), ("--help",))
        )
    except BangerError as error:
        hint = f"set qemu_path to a working {QEMU_PROGRAM}" if program else _INSTALL_QEMU
        if not isinstance(error, CommandFailedError):
            hint = error.hint or hint
        return Answer(ok=False, why=f"{error.what}\n{error.detail}".strip(), hint=hint)
    release = qemu_version(version)
    if release is None or release < MIN_QEMU:
        wanted, first = ".".join(map(str, MIN_QEMU)), version.strip().partition("\n")[0]
        return Answer(
            ok=False,
            why=f"{path} is not QEMU {wanted} or newer: {first[:80]}",
            hint="install a newer QEMU",
        )
    for what, text, pattern in (
        ("microvm machine", machines, r"^microvm\b"),
        ("TCG accelerator", accelerators, r"^tcg\b"),
        ("sandbox", usage, r"^-sandbox\b"),
    ):
        if not re.search(pattern, text, re.MULTILINE):
            return Answer(ok=False, why=f"{path} has no {what}", hint=_INSTALL_QEMU)
    return Answer(ok=True, found=path)


def qemu_version(text: str) -> tuple[int, int] | None:
    """Major and minor number in the output of ``qemu --version``; None if it is no such thing."""
    found = re.match(r"QEMU emulator version (\d{1,4})\.(\d{1,4})", text)
    return (int(found[1]), int(found[2])) if found else None


def _ask(*argv: str) -> str:
    return run_sync(argv, timeout_s=_QUERY_S).stdout.decode(errors="replace")


def reflink(directory: Path) -> Answer:
    """Whether files in ``directory`` can share blocks, so that copies of disks cost nothing."""
    try:
        shares = fs.supports_reflink(directory)
    except OSError as error:
        return Answer(ok=False, why=f"{directory}: {error.strerror}", hint=f"ls -ld {directory}")
    if shares:
        return Answer(ok=True, found=str(directory))
    return Answer(
        ok=False,
        why=f"the file system of {directory} cannot share blocks; disks are copied",
        hint="sudo banger setup storage",
    )


def loop() -> Answer:
    """Whether loop devices can be had: needs root, and the module."""
    try:
        control = os.open("/dev/loop-control", os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        return Answer(ok=False, why="/dev/loop-control: permission denied", hint="run it as root")
    except OSError as error:
        return Answer(
            ok=False, why=f"/dev/loop-control: {error.strerror}", hint="sudo modprobe loop"
        )
    try:
        number = fcntl.ioctl(control, _LOOP_CTL_GET_FREE)
        os.close(os.open(f"/dev/loop{number}", os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        return Answer(ok=False, why=f"no loop device: {error.strerror}", hint="run it as root")
    finally:
        os.close(control)
    return Answer(ok=True, found=f"/dev/loop{number}")


@cache
def device_mapper() -> Answer:
    """Whether snapshots of the device mapper can be had: needs root, dmsetup, and the kernel's target, whose module is loaded for it."""
    if not (able := root()):
        return Answer(ok=False, why=f"it needs root; {able.why}", hint=able.hint)
    if not (loops := loop()):
        return loops
    try:
        program = find_program("dmsetup", package="dmsetup")
        os.close(os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC))
        if not _has_snapshots(program):
            run_sync(
                [find_program("modprobe", package="kmod"), "-q", "dm_snapshot"],
                timeout_s=_QUERY_S,
                check=False,
            )
        if _has_snapshots(program):
            return Answer(ok=True, found=program)
    except OSError as error:
        return Answer(
            ok=False, why=f"/dev/mapper/control: {error.strerror}", hint="sudo modprobe dm_mod"
        )
    except BangerError as error:
        return Answer(ok=False, why=f"{error.what}\n{error.detail}".strip(), hint=error.hint)
    return Answer(
        ok=False, why="the kernel has no snapshot target", hint="sudo modprobe dm_snapshot"
    )


def _has_snapshots(dmsetup: str) -> bool:
    listed = run_sync([dmsetup, "targets"], timeout_s=_QUERY_S).stdout.decode(errors="replace")
    return any(line.split()[:1] == ["snapshot"] for line in listed.splitlines())


def root() -> Answer:
    """Whether this process is root."""
    if os.geteuid() == 0:
        return Answer(ok=True)
    return Answer(ok=False, why=f"running as uid {os.geteuid()}", hint="run it as root")
