"""What no test may leave behind in its own process: descriptors, children, tasks. Fixtures for conftest."""

import asyncio
import contextlib
import inspect
import os
import time
from pathlib import Path

import pytest

WAIT_S = 10
CHILDREN_S = 5  # tests/unit/test_harness.py leaves one that lives for 30


def children():
    """Living children of this process: pid and command line."""
    found, pids = set(), []
    for listing in Path("/proc/self/task").glob("*/children"):
        with contextlib.suppress(OSError):
            pids += listing.read_text().split()
    for pid in pids:
        with contextlib.suppress(OSError):  # one that is gone hides no other
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
            if state != "Z":
                words = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ")
                found.add((int(pid), words.decode(errors="replace")[:100]))
    return found


@pytest.fixture(autouse=True)
def no_open_files_and_children_are_left():
    """A server in a thread may take a moment to close its own."""
    before, family = len(os.listdir("/proc/self/fd")), children()
    yield
    end = time.monotonic() + WAIT_S
    while (after := len(os.listdir("/proc/self/fd"))) > before + 3 and time.monotonic() < end:
        time.sleep(0.05)
    assert after <= before + 3, f"{after - before} descriptors were left open"
    end = time.monotonic() + CHILDREN_S
    while (left := children() - family) and time.monotonic() < end:
        time.sleep(0.05)
    assert not left, f"children were left: {sorted(left)}"


@pytest.fixture(autouse=True)
def no_tasks_are_left(request):
    """A test with a loop leaves no tasks in it, once its fixtures are gone too."""
    if inspect.iscoroutinefunction(request.function):
        request.getfixturevalue("loop_without_tasks")


@pytest.fixture
async def loop_without_tasks():
    """See `no_tasks_are_left`."""
    before = asyncio.all_tasks()
    yield
    left = asyncio.all_tasks() - before - {asyncio.current_task()}
    if left:
        _, left = await asyncio.wait(left, timeout=WAIT_S)
    assert not left, f"tasks were left: {left}"
