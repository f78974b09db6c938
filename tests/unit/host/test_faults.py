"""Trace points: silent, until a test asks."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from banger.host import faults
from banger.model.errors import BangerError


@pytest.fixture(autouse=True)
def cleared():
    yield
    faults.load("")


async def test_without_faults_a_point_does_nothing():
    faults.load("")
    await faults.point("anything")


async def test_an_error_comes_at_its_point_only():
    faults.load("a.b=error,c=hang")
    await faults.point("a.b.c")
    with pytest.raises(BangerError, match=r"fault injected at a\.b"):
        await faults.point("a.b")


async def test_a_hang_lasts_until_it_is_cancelled():
    faults.load("x=hang")
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await faults.point("x")


async def test_a_slow_point_goes_on_after_a_while(monkeypatch):
    monkeypatch.setattr(faults, "SLOW_S", 0.05)
    faults.load("x=slow")
    began = time.monotonic()
    await faults.point("x")
    assert time.monotonic() - began >= 0.04


def test_work_without_an_event_loop_has_points_too(monkeypatch):
    monkeypatch.setattr(faults, "SLOW_S", 0.05)
    faults.load("a=error,b=slow")
    faults.blocking_point("anything")
    with pytest.raises(BangerError, match="fault injected at a"):
        faults.blocking_point("a")
    began = time.monotonic()
    faults.blocking_point("b")
    assert time.monotonic() - began >= 0.04


def test_an_unknown_action_is_refused():
    with pytest.raises(ValueError, match="kill, error, hang or slow"):
        faults.load("x=explode")


@pytest.mark.parametrize("call", ["asyncio.run(faults.point('here'))", "faults.blocking_point('here')"])  # fmt: skip
def test_the_environment_is_read_and_kill_is_sigkill(call):
    code = f"import asyncio; from banger.host import faults; faults.load(); {call}"
    done = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, "BANGER_FAULTS": "here=kill"}, check=False
    )
    assert done.returncode == -signal.SIGKILL
