"""Processes by identity: never the wrong one, never a poll, never a zombie left."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from banger.host import proc


@pytest.fixture
def sleeper():
    """A child that sleeps; its Popen never reaps it, as with VMMs."""
    child = subprocess.Popen(["sleep", "86399"])
    child.returncode = 0
    while not proc.arguments(proc.identify(child.pid)):
        time.sleep(0.001)  # the kernel sets them a moment after exec has succeeded
    identity = proc.identify(child.pid)
    yield identity
    if proc.alive(identity):
        os.kill(identity.pid, signal.SIGKILL)
        os.waitpid(identity.pid, 0)


def another(identity):
    """As if the pid had been given to this process after ours had ended."""
    return replace(identity, start_ticks=identity.start_ticks - 1)


async def zombie(identity):
    async with asyncio.timeout(30):
        while proc.alive(identity):
            await asyncio.sleep(0.005)


def test_we_are_ourselves():
    me = proc.identify(os.getpid())
    assert proc.alive(me)
    assert me.boot_id == proc.boot_id()
    assert len(me.boot_id) == 36


def test_a_pid_that_nobody_has_is_nobody():
    assert proc.identify(2**22 + 1) is None


def test_a_name_with_brackets_and_blanks_does_not_confuse(tmp_path):
    program = tmp_path / "a) R 1 (b"
    program.symlink_to("/bin/sleep")
    child = subprocess.Popen([program, "86399"])
    try:
        assert proc.alive(proc.identify(child.pid))
    finally:
        child.kill()
        child.wait()


def test_a_recycled_pid_is_neither_alive_nor_hit_nor_opened(sleeper):
    stranger = another(sleeper)
    assert not proc.alive(stranger)
    assert proc.open_pidfd(stranger) is None
    assert proc.send_signal(stranger, signal.SIGKILL) is False
    assert proc.arguments(stranger) == []
    assert proc.alive(sleeper)


async def test_the_process_of_another_boot_is_gone(sleeper):
    assert await proc.wait_gone(replace(sleeper, boot_id="0" * 36)) is None
    assert proc.alive(sleeper)


async def test_waiting_gives_the_exit_code_of_a_child_and_leaves_no_zombie(sleeper):
    waiting = asyncio.create_task(proc.wait_gone(sleeper))
    await asyncio.sleep(0)
    assert proc.send_signal(sleeper, signal.SIGTERM) is True
    async with asyncio.timeout(30):
        assert await waiting == -signal.SIGTERM
    assert not os.path.exists(f"/proc/{sleeper.pid}")


async def test_waiting_for_a_child_that_has_ended_already_reaps_it(sleeper):
    os.kill(sleeper.pid, signal.SIGKILL)
    await zombie(sleeper)
    assert await proc.wait_gone(sleeper) == -signal.SIGKILL


async def test_another_child_with_the_same_pid_is_not_reaped(sleeper):
    os.kill(sleeper.pid, signal.SIGKILL)
    await zombie(sleeper)
    assert await proc.wait_gone(another(sleeper)) is None
    assert proc.reap(sleeper.pid) == -signal.SIGKILL


async def test_a_process_that_is_no_child_gives_no_code():
    script = "import subprocess,sys; p = subprocess.Popen(['sleep', '86399']); print(p.pid, flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as parent:
        identity = proc.identify(int(parent.stdout.readline()))
        waiting = asyncio.create_task(proc.wait_gone(identity))
        await asyncio.sleep(0)
        await proc.kill(identity)
        async with asyncio.timeout(30):
            assert await waiting is None
        parent.stdin.close()


async def test_killing_waits_until_it_is_gone_and_may_be_repeated(sleeper):
    await proc.kill(sleeper)
    assert not proc.alive(sleeper)
    await proc.kill(sleeper)
    assert proc.reap(sleeper.pid) is None


async def test_a_stopped_process_can_be_killed(sleeper):
    proc.send_signal(sleeper, signal.SIGSTOP)
    async with asyncio.timeout(30):
        await proc.kill(sleeper)


async def test_a_cancelled_wait_leaves_no_descriptor(sleeper):
    before = len(os.listdir("/proc/self/fd"))
    waiting = asyncio.create_task(proc.wait_gone(sleeper))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait({waiting})
    assert len(os.listdir("/proc/self/fd")) == before


def test_usage_is_that_of_the_process():
    cpu_s, rss_bytes = proc.usage(os.getpid())
    assert cpu_s > 0
    assert 1 << 20 < rss_bytes < 1 << 34
    assert proc.usage(2**22 + 1) == (0.0, 0)


def test_a_process_is_found_by_a_whole_argument_only(sleeper):
    assert proc.arguments(sleeper) == ["sleep", "86399"]
    assert sleeper in proc.find_by_argument("86399")
    assert sleeper not in proc.find_by_argument("8639")
    assert proc.find_by_argument("no process has this argument") == []
