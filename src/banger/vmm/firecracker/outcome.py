"""Why a Firecracker ended, and when a guest that has halted counts as ended. Pure.

Firecracker ends when its guest resets the machine through the keyboard controller (``reboot=k``), with status 0. It has no power that
could be switched off: banger's images say so on the console and reset instead; any other guest that powers off halts, and Firecracker
goes on. The kernel's last word on the console is then all that tells it.
"""

from __future__ import annotations

import re
from typing import Final

from banger.host.exec import describe_exit
from banger.model.machine import VmmExit
from banger.vmm.console import PANIC

_LAST_WORD: Final = re.compile(
    rb"(?:\[ *\d+\.\d+\] )?reboot: (?:Power down|System halted|Power off not available: System halted instead)"
)
"""linux/kernel/reboot.c: ``Power down``; where nothing can switch the power off, ``System halted`` and what newer kernels make of it."""
_POWERED_OFF: Final = "banger: powered off"
"""What a shutdown hook of banger's images says before it resets the machine."""
_ENDED: Final = re.compile(r"Firecracker exiting (?:successfully|with error)\. exit_code=(\d+)")
_BY_SIGNAL: Final = {-2, -15, 156}
"""SIGINT, SIGTERM, and the status with which Firecracker answers SIGHUP."""
_STATUSES: Final = {
    148: "broke its own seccomp filter",
    149: "was ended by SIGBUS",
    150: "was ended by SIGSEGV",
    151: "was ended by SIGXFSZ",
    153: "does not know its command line",
    154: "was ended by SIGXCPU",
    157: "was ended by SIGILL",
}
"""Firecracker's exit statuses that say more than that it failed (``FcExitCode``)."""
_NOISE: Final = re.compile(r"vcpu: IO (?:read|write) @ |Invalid MMIO (?:read|write) @ ")


def has_halted(console: bytes) -> bool:
    """Whether the last line of ``console`` is the last that a kernel says before it halts for good."""
    line = console.rstrip(b"\r\n \0").rpartition(b"\n")[2].strip(b"\r \0")
    return _LAST_WORD.fullmatch(line) is not None


def is_noise(line: str) -> bool:
    """Whether ``line`` of Firecracker's log tells of an access to a device that is not there: kernels probe for many."""
    return _NOISE.search(line) is not None


def outcome(
    returncode: int | None, *, killed: bool, asked: bool, halted: bool, console: str, log: str
) -> VmmExit:
    """How a Firecracker ended.

    ``returncode`` as of ``Popen`` (None: not our child), ``killed`` whether we ended it, ``asked`` whether we have pressed the power
    button, ``halted`` whether we ended it because its guest had halted, ``console`` and ``log`` the last lines of both.
    """
    if halted:
        return VmmExit("guest-shutdown", returncode)
    if killed:
        return VmmExit("quit", returncode)
    status = _logged(log) if returncode is None else returncode
    if status in _BY_SIGNAL:
        return VmmExit("host-signal", returncode)
    if status == 0:
        return VmmExit(_reset(console, asked=asked), returncode)
    return VmmExit("crash", returncode, _detail(status, log))


def _logged(log: str) -> int | None:
    """The exit status of an adopted Firecracker: its log's last line has it, unless it was killed."""
    found = _ENDED.search(log.rpartition("\n")[2])
    return int(found[1]) if found else None


def _reset(console: str, *, asked: bool) -> str:
    """Why the guest has reset the machine: systemd answers the button, which is Ctrl-Alt-Del, with a reboot."""
    if PANIC in console:  # panic=1 on the kernel's command line resets the machine
        return "guest-panic"
    return "guest-shutdown" if asked or _POWERED_OFF in console else "guest-reset"


def describe(status: int) -> str:
    """How Firecracker ended, for a person: ``ended with status 1`` or what its own statuses mean."""
    return _STATUSES.get(status) or describe_exit(status)


def _detail(status: int | None, log: str) -> str:
    how = "Firecracker ended" if status is None else f"Firecracker {describe(status)}"
    return f"{how}\n{log}".strip()
