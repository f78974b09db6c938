"""When a guest has halted: seen on the console while it is written, capped, removed."""

import asyncio
import time

import pytest

from banger.vmm.console import cap_log
from banger.vmm.firecracker import process
from banger.vmm.firecracker.process import until_halted

OFF = b"[    9.123456] reboot: System halted\r\n"
DEADLINE_S = 30  # a busy host may hold anybody up


@pytest.fixture
def console(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_LOOK_AGAIN_S", 3600)  # what comes in time was told by the kernel
    path = tmp_path / "console.log"
    path.write_bytes(b"booting\r\n")
    return path


def append(path, data):
    with path.open("ab") as file:
        file.write(data)


async def soon(task):
    """The seconds until ``task`` is over."""
    began = time.monotonic()
    async with asyncio.timeout(DEADLINE_S):
        await task
    return time.monotonic() - began


def test_what_is_waited_for_on_purpose_is_less_than_half_a_second():
    assert process._GATHER_S + process._SETTLE_S < 0.5


async def test_the_last_word_is_noticed_at_once(console):
    waiting = asyncio.create_task(until_halted(console))
    await asyncio.sleep(0.05)
    append(console, OFF)
    assert await soon(waiting) < DEADLINE_S


async def test_a_word_that_was_said_before_anybody_listened_counts(console):
    append(console, OFF)
    assert await soon(asyncio.create_task(until_halted(console))) < DEADLINE_S


async def test_a_word_that_is_followed_by_others_was_not_the_last(console, monkeypatch):
    settle_s = process._SETTLE_S
    monkeypatch.setattr(process, "_SETTLE_S", 3600)  # however long the others take to come
    waiting = asyncio.create_task(until_halted(console))
    append(console, OFF)
    await asyncio.sleep(0.2)
    append(console, b"# somebody only printed it\r\n")
    await asyncio.sleep(0.2)
    assert not waiting.done()
    monkeypatch.setattr(process, "_SETTLE_S", settle_s)
    append(console, OFF)
    await soon(waiting)


async def test_a_word_that_comes_byte_by_byte_is_noticed(console):
    """Firecracker writes each character on its own."""
    waiting = asyncio.create_task(until_halted(console))
    for byte in OFF:
        append(console, bytes([byte]))
        await asyncio.sleep(0.002)
    assert await soon(waiting) < DEADLINE_S


async def test_a_console_that_is_capped_meanwhile_is_still_watched(console):
    waiting = asyncio.create_task(until_halted(console))
    append(console, b"la la la\r\n" * 1000)
    await asyncio.sleep(0.05)
    assert cap_log(console, 4000)
    await asyncio.sleep(0.1)
    assert not waiting.done()
    append(console, OFF)
    await soon(waiting)


async def test_a_guest_that_talks_all_the_time_costs_few_looks(console, monkeypatch):
    looks = []
    real = process.has_halted
    monkeypatch.setattr(process, "has_halted", lambda data: looks.append(1) or real(data))
    waiting = asyncio.create_task(until_halted(console))
    end = time.monotonic() + 0.5
    while time.monotonic() < end:
        append(console, b"la la la\r\n")
        await asyncio.sleep(0.001)
    assert len(looks) < 0.5 / process._GATHER_S + 5
    waiting.cancel()


async def test_a_silent_guest_costs_nothing(console, monkeypatch):
    looks = []
    monkeypatch.setattr(process, "has_halted", lambda _data: looks.append(1) and False)
    waiting = asyncio.create_task(until_halted(console))
    await asyncio.sleep(0.5)
    assert len(looks) == 1
    waiting.cancel()


async def test_where_the_kernel_does_not_tell_of_changes_the_console_is_looked_at(
    console, monkeypatch
):
    monkeypatch.setattr("banger.host.inotify._libc.inotify_init1", lambda _flags: -1, raising=False)
    monkeypatch.setattr(process, "_LOOK_AGAIN_S", 0.1)
    waiting = asyncio.create_task(until_halted(console))
    await asyncio.sleep(0.05)
    append(console, OFF)
    assert await soon(waiting) < DEADLINE_S


async def test_a_missing_console_is_no_end(tmp_path, monkeypatch):
    monkeypatch.setattr(process, "_LOOK_AGAIN_S", 0.05)
    waiting = asyncio.create_task(until_halted(tmp_path / "none"))
    await asyncio.sleep(0.2)
    assert not waiting.done()
    (tmp_path / "none").write_bytes(OFF)
    await soon(waiting)
