"""Why a QEMU ended."""

import pytest

from banger.model.machine import VmmExit
from banger.vmm.qemu.outcome import outcome

PANIC = "[ 1.0] Kernel panic - not syncing: Attempted to kill init!\n[ 1.0] CPU: 0"
OFF = "[ 9.0] reboot: Power down"
AGAIN = "[ 9.0] reboot: Restarting system"


def shutdown(reason, *, guest=True):
    return {"event": "SHUTDOWN", "data": {"guest": guest, "reason": reason}, "timestamp": {}}


def why(returncode=0, events=(), *, killed=False, console="", log=""):
    return outcome(returncode, events, killed=killed, console=console, log=log)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        ("guest-shutdown", "guest-shutdown"),
        ("guest-reset", "guest-reset"),
        ("guest-panic", "guest-panic"),
        ("host-signal", "host-signal"),
        ("host-qmp-quit", "quit"),
        ("host-error", "crash"),
    ],
)
def test_the_monitors_last_word_counts(told, reason):
    assert why(0, [shutdown(told)]).reason == reason


def test_a_reset_after_a_panic_is_a_panic():
    assert why(0, [shutdown("guest-reset")], console=PANIC).reason == "guest-panic"


def test_a_shutdown_after_a_panic_that_somebody_only_printed_is_a_shutdown():
    assert why(0, [shutdown("guest-shutdown")], console=PANIC).reason == "guest-shutdown"


def test_a_panic_event_comes_before_all():
    assert why(0, [shutdown("guest-shutdown"), {"event": "GUEST_PANICKED"}]).reason == "guest-panic"


def test_what_we_killed_has_quit_whatever_else_is_known():
    assert why(-9, [shutdown("guest-reset")], killed=True, console=PANIC) == VmmExit("quit", -9)


def test_a_signal_without_a_word_is_a_crash_with_its_name_and_the_log():
    told = why(-11, log="qemu: something bad")
    assert (told.reason, told.returncode) == ("crash", -11)
    assert told.detail == "QEMU was killed by SIGSEGV\nqemu: something bad"


def test_a_bad_status_is_a_crash_even_after_a_panic():
    assert why(1, console=PANIC).reason == "crash"


@pytest.mark.parametrize(
    ("returncode", "console", "reason"),
    [
        (0, "", "guest-shutdown"),
        (None, OFF, "guest-shutdown"),
        (None, PANIC, "guest-panic"),
        (0, PANIC, "guest-panic"),
        (None, "login:", "crash"),
        (0, AGAIN, "guest-reset"),
        (None, f"login:\n{AGAIN}\r\n", "guest-reset"),
        (0, f"{AGAIN}\nbanger: booted", "guest-shutdown"),
        (0, f"{AGAIN}\nbanger: booted\n{OFF}", "guest-shutdown"),
        (1, AGAIN, "crash"),
    ],
)
def test_without_a_word_the_console_is_read(returncode, console, reason):
    assert why(returncode, console=console).reason == reason


@pytest.mark.parametrize(
    "event",
    [{}, {"event": "SHUTDOWN"}, {"event": "SHUTDOWN", "data": 3}, shutdown("new-in-qemu-20")],
)
def test_events_of_an_unknown_shape_are_no_error(event):
    assert why(0, [event]).reason == "guest-shutdown"
