"""Why a QEMU ended, from the little that it leaves behind. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from banger.host.exec import describe_exit
from banger.model.machine import VmmExit
from banger.vmm.console import PANIC

_POWERED_OFF = "reboot: Power down"
_RESTARTED = "reboot: Restarting system"
"""linux/kernel/reboot.c, the last that a kernel says before it resets the machine; a boot later it is no longer the last line."""
_REASONS = {
    "guest-shutdown": "guest-shutdown",
    "guest-reset": "guest-reset",
    "guest-panic": "guest-panic",
    "host-signal": "host-signal",
    "host-qmp-quit": "quit",
    "host-ui": "quit",
    "host-error": "crash",
}
"""QEMU's ShutdownCause and what we call it."""


def outcome(
    returncode: int | None,
    events: Sequence[Mapping[str, Any]],
    *,
    killed: bool,
    console: str,
    log: str,
) -> VmmExit:
    """How a QEMU ended.

    ``returncode`` as of ``Popen`` (None: not our child), ``events`` what its monitor said last, ``killed`` whether we ended it,
    ``console`` the end of the guest's serial console, ``log`` the end of what QEMU itself printed.
    """
    if killed:
        return VmmExit("quit", returncode)
    reason = _told(events) or _guessed(returncode, console)
    if (
        reason == "guest-reset" and PANIC in console
    ):  # panic=-1 on the kernel's command line resets the machine
        reason = "guest-panic"
    return VmmExit(reason, returncode, _detail(returncode, log) if reason == "crash" else "")


def _told(events: Sequence[Mapping[str, Any]]) -> str:
    reasons = []
    for event in events:
        if event.get("event") == "GUEST_PANICKED":
            return "guest-panic"
        data = event.get("data")
        if isinstance(data, Mapping):
            reasons.append(_REASONS.get(str(data.get("reason")), ""))
    return next(filter(None, reasons), "")


def _guessed(returncode: int | None, console: str) -> str:
    """The monitor said nothing, or was not connected, as after a call that a busy QEMU did not answer in time."""
    if returncode:
        return "crash"
    if PANIC in console:
        return "guest-panic"
    if _RESTARTED in console.rstrip().rpartition("\n")[2]:
        return "guest-reset"
    if returncode == 0 or _POWERED_OFF in console:
        return "guest-shutdown"
    return "crash"


def _detail(returncode: int | None, log: str) -> str:
    how = "QEMU ended" if returncode is None else f"QEMU {describe_exit(returncode)}"
    return f"{how}\n{log}".strip()
