"""Why a Firecracker ended, and when its guest has."""

import pytest

from banger.model.machine import VmmExit
from banger.vmm.firecracker.outcome import describe, has_halted, is_noise, outcome

PANIC = "[ 1.0] Kernel panic - not syncing: Attempted to kill init!\n[ 1.0] CPU: 0"
RESTART = "[ 9.0] reboot: Restarting system"
OFF = "banger: powered off\n[ 9.1] reboot: Restarting system"
WELL = "2026-11-25 [x:main] Vmm is stopping.\n2026-11-25 [x:main] Firecracker exiting successfully. exit_code=0"
BADLY = "2026-11-25 [x:main] Firecracker exiting with error. exit_code=148"


def why(returncode=0, *, killed=False, asked=False, halted=False, console="", log=""):
    return outcome(returncode, killed=killed, asked=asked, halted=halted, console=console, log=log)


@pytest.mark.parametrize(
    ("known", "reason"),
    [
        ({"console": RESTART}, "guest-reset"),
        ({"console": OFF}, "guest-shutdown"),
        ({"console": RESTART, "asked": True}, "guest-shutdown"),
        ({"console": PANIC}, "guest-panic"),
        ({"console": PANIC, "asked": True}, "guest-panic"),
        ({"returncode": -9, "halted": True}, "guest-shutdown"),
        ({"returncode": -9, "killed": True, "console": PANIC}, "quit"),
        ({"returncode": -15}, "host-signal"),
        ({"returncode": 156}, "host-signal"),
        ({"returncode": None, "console": RESTART, "log": WELL}, "guest-reset"),
        ({"returncode": None, "console": OFF, "log": WELL}, "guest-shutdown"),
        ({"returncode": None, "console": PANIC, "log": WELL}, "guest-panic"),
        ({"returncode": None, "console": RESTART, "log": BADLY}, "crash"),
        ({"returncode": None, "console": RESTART}, "crash"),
        ({"returncode": 1, "console": PANIC}, "crash"),
    ],
)
def test_the_reason_is_put_together_from_what_is_left(known, reason):
    assert why(**known).reason == reason


def test_a_signal_is_a_crash_with_its_name_and_the_log():
    assert why(-11, log="something bad") == VmmExit(
        "crash", -11, "Firecracker was killed by SIGSEGV\nsomething bad"
    )


@pytest.mark.parametrize(
    ("returncode", "log", "detail"),
    [
        (148, "", "Firecracker broke its own seccomp filter"),
        (149, "", "Firecracker was ended by SIGBUS"),
        (1, "", "Firecracker ended with status 1"),
        (None, BADLY, f"Firecracker broke its own seccomp filter\n{BADLY}"),
        (None, "", "Firecracker ended"),
    ],
)
def test_exit_statuses_of_its_own_are_explained(returncode, log, detail):
    assert why(returncode, log=log).detail == detail


def test_a_status_without_a_meaning_of_its_own_is_told_as_it_is():
    assert describe(0) == "ended with status 0"


@pytest.mark.parametrize(
    "line",
    [
        b"[    9.123456] reboot: Power down",
        b"[12345.000001] reboot: System halted",
        b"[    9.1] reboot: Power off not available: System halted instead",
        b"reboot: Power down",
    ],
)
@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n", b"\r\n\r\n", b"\r\0\n"])
def test_a_kernels_last_word_is_known_in_all_its_forms(line, end):
    assert has_halted(b"whatever came before\r\n" + line + end)
    assert has_halted(line + end)


@pytest.mark.parametrize(
    "console",
    [
        b"",
        b"\n",
        b"[    9.1] reboot: Restarting system\n",
        b"[    9.1] reboot: Power down\r\nlogin: ",
        b"# echo 'reboot: Power down'\r\n",
        b"Nov 25 03:00 box kernel: reboot: Power down\r\n",
        b"[    9.1] reboot: Power downfall\r\n",
        b"reboot: Power down?\r\n",
    ],
)
def test_what_only_looks_like_a_last_word_is_none(console):
    assert not has_halted(console)


def test_accesses_to_devices_that_are_not_there_are_noise():
    assert is_noise(
        "2026 [x:fc_vcpu 0] vcpu: IO read @ 0x3e9:0x1 failed: Failed to find address range."
    )
    assert is_noise("2026 [x:fc_vcpu 0] Invalid MMIO read @ 0xc0000000:0x4: no such device")
    assert not is_noise("2026 [x:main] Failed to open the API socket")
