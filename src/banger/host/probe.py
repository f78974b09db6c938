"""Can this host…? One question a function, answered by doing it. Doctor, run-time paths and test skips share the answers."""

from __future__ import annotations

import fcntl
import os
import platform
import re
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from banger.host.exec import find_program, run_sync
from banger.model.errors import BangerError

_KVM_GET_API_VERSION, _KVM_CREATE_VM, _KVM_CREATE_VCPU = 0xAE00, 0xAE01, 0xAE41  # linux/kvm.h
_KVM_API_VERSION = 12
MIN_QEMU = (7, 0)


@dataclass(frozen=True, slots=True)
class Answer:
    """Whether it can; if not why, and one next step."""

    ok: bool
    why: str = ""
    hint: str = ""


@cache
def kvm() -> Answer:
    """Whether KVM runs guests here. A /dev/kvm that opens is not enough: on x86 the CPU must have svm or vmx, and
    a VM with a vCPU must really come into being.
    """
    if platform.machine() in {"x86_64", "i686"}:
        flags = re.search(r"^flags\s*:(.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
        if flags is None or not {"svm", "vmx"} & set(flags[1].split()):
            return Answer(
                ok=False,
                why="the CPU shows neither svm nor vmx",
                hint="enable virtualisation in the firmware",
            )
    try:
        device = os.open("/dev/kvm", os.O_RDWR | os.O_CLOEXEC)
    except OSError as error:
        hint = (
            "sudo usermod -aG kvm $USER, then log in again"
            if isinstance(error, PermissionError)
            else "modprobe kvm"
        )
        return Answer(ok=False, why=f"/dev/kvm: {error.strerror}", hint=hint)
    try:
        return _create_vm(device)
    finally:
        os.close(device)


def _create_vm(device: int) -> Answer:
    opened = []
    try:
        if fcntl.ioctl(device, _KVM_GET_API_VERSION) != _KVM_API_VERSION:
            return Answer(ok=False, why="/dev/kvm speaks another API version")
        opened.append(fcntl.ioctl(device, _KVM_CREATE_VM, 0))
        opened.append(fcntl.ioctl(opened[0], _KVM_CREATE_VCPU, 0))
    except OSError as error:
        return Answer(ok=False, why=f"KVM cannot make a VM: {error.strerror}")
    finally:
        for descriptor in reversed(opened):
            with suppress(OSError):
                os.close(descriptor)
    return Answer(ok=True)


@cache
def qemu(program: str | None = None) -> Answer:
    """Whether a QEMU is here that is new enough and has the microvm machine."""
    try:
        path = program or find_program("qemu-system-x86_64", package="qemu-system-x86")
        version = run_sync([path, "--version"], timeout_s=20).stdout.decode(errors="replace")
        machines = run_sync([path, "-machine", "help"], timeout_s=20).stdout.decode(
            errors="replace"
        )
    except BangerError as error:
        return Answer(
            ok=False, why=error.what, hint=error.hint or "sudo apt-get install qemu-system-x86"
        )
    found = re.search(r"version (\d+)\.(\d+)", version)
    if found is None or (int(found[1]), int(found[2])) < MIN_QEMU:
        wanted = ".".join(map(str, MIN_QEMU))
        return Answer(
            ok=False,
            why=f"{path} is older than {wanted}: {version.strip()[:80]}",
            hint="install a newer QEMU",
        )
    if not re.search(r"^microvm\b", machines, re.MULTILINE):
        return Answer(
            ok=False, why=f"{path} has no microvm machine", hint="install qemu-system-x86"
        )
    return Answer(ok=True, why=path)


def cpu_khz() -> int:
    """The host's CPU frequency in kHz as /proc/cpuinfo shows it now; 0 if it does not."""
    found = re.search(r"^cpu MHz\s*:\s*([\d.]+)", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return int(float(found[1]) * 1000) if found else 0
