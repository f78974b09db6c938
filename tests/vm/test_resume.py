"""What a guest that was paused knows of the time."""

import time

import pytest

pytestmark = pytest.mark.timeout(300)


def guest_time(installation):
    """The guest's clock, and how far it may be off by the time that asking took."""
    began = time.time()
    said = float(installation.run("vm", "exec", "box", "--", "date", "+%s.%N").stdout)
    return said - began, time.time() - began


def test_a_resumed_guest_has_the_right_time(vm):
    vm.run("vm", "pause", "box")
    time.sleep(5)
    vm.run("vm", "resume", "box")
    off, asking = guest_time(vm)
    assert -0.5 < off < asking + 0.5
