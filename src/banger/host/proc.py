"""Processes by identity: pid, start time and boot id. A recycled pid is never ours; waiting is by pidfd, not by polling."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from pathlib import Path

from banger.model.lease import Traffic
from banger.model.process import ProcessIdentity


@cache
def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _stat_fields(pid: int) -> list[str] | None:
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text.rpartition(")")[2].split()  # the command's name may hold blanks and brackets


def identify(pid: int) -> ProcessIdentity | None:
    """Who ``pid`` is now; None if there is no such process or it is a zombie (proc(5): field 3 state, 22 starttime)."""
    fields = _stat_fields(pid)
    if fields is None or fields[0] in {"Z", "X"}:
        return None
    return ProcessIdentity(pid, int(fields[19]), boot_id())


def alive(identity: ProcessIdentity) -> bool:
    """Whether exactly this process still runs."""
    return identify(identity.pid) == identity


def open_pidfd(identity: ProcessIdentity) -> int | None:
    """A pidfd of exactly this process, or None if it is gone; the caller closes it."""
    try:
        descriptor = os.pidfd_open(identity.pid)
    except ProcessLookupError:
        return None
    if not alive(identity):
        os.close(descriptor)
        return None
    return descriptor


def send_signal(identity: ProcessIdentity, signo: signal.Signals) -> bool:
    """Send ``signo`` to exactly this process; False if it is gone."""
    descriptor = open_pidfd(identity)
    if descriptor is None:
        return False
    try:
        signal.pidfd_send_signal(descriptor, signo)
    except ProcessLookupError:
        return False
    finally:
        os.close(descriptor)
    return True


async def wait_gone(identity: ProcessIdentity) -> int | None:
    """Return when this process has ended; its wait status if it was our child, else None."""
    descriptor = open_pidfd(identity)
    if descriptor is None:
        return _reap_exactly(identity)
    loop = asyncio.get_running_loop()
    ended: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not ended.done():
            ended.set_result(None)

    loop.add_reader(descriptor, note)
    try:
        await ended
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
    return _reap_exactly(identity)


def _reap_exactly(identity: ProcessIdentity) -> int | None:
    """As `reap`, but never for another child that got the same pid since."""
    fields = _stat_fields(identity.pid)
    if fields is None or int(fields[19]) != identity.start_ticks:
        return None
    return reap(identity.pid)


def reap(pid: int) -> int | None:
    """Collect the child ``pid`` if it is ours and has ended: its exit code (negative signal), else None."""
    with suppress(ChildProcessError):
        done, status = os.waitpid(pid, os.WNOHANG)
        if done == pid:
            return os.waitstatus_to_exitcode(status)
    return None


async def kill(identity: ProcessIdentity, *, timeout_s: float = 10.0) -> None:
    """End this process with SIGKILL and wait until it is gone; TimeoutError if the kernel holds it longer."""
    if send_signal(identity, signal.SIGKILL):
        async with asyncio.timeout(timeout_s):
            await wait_gone(identity)
    else:
        _reap_exactly(identity)


def usage(pid: int) -> tuple[float, int]:
    """CPU seconds and resident bytes of ``pid``; zeros if it is gone (proc(5): utime 14, stime 15, rss 24)."""
    fields = _stat_fields(pid)
    if fields is None:
        return 0.0, 0
    ticks = os.sysconf("SC_CLK_TCK")
    return (int(fields[11]) + int(fields[12])) / ticks, int(fields[21]) * os.sysconf("SC_PAGE_SIZE")


def traffic(pid: int, link: str) -> Traffic | None:
    """What the link called ``link``, in the network namespace of ``pid``, has taken in and given out (proc_pid_net(5): columns 1
    and 9 of its line in net/dev); None if there is no such process or link.
    """
    try:
        lines = Path(f"/proc/{pid}/net/dev").read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        name, colon, counts = line.partition(":")
        if colon and name.strip() == link:
            columns = counts.split()
            return Traffic(int(columns[0]), int(columns[8]))
    return None


def arguments(identity: ProcessIdentity) -> list[str]:
    """The argv of exactly this process; empty if it is gone."""
    try:
        text = Path(f"/proc/{identity.pid}/cmdline").read_bytes().decode(errors="surrogateescape")
    except OSError:
        return []
    return text.split("\0")[:-1] if alive(identity) else []


def find_by_argument(
    *words: str, ours: Callable[[int], bool] = lambda uid: uid == os.geteuid()
) -> list[ProcessIdentity]:
    """Processes whose argv holds exactly ``words``, one after the other: to find a VMM whose pid was never recorded.

    ``ours`` tells from a process's uid whether it can be one; else anybody's could pass for it.
    """
    needle = b"".join(b"\0" + os.fsencode(word) for word in words) + b"\0"
    return [
        identity
        for _, identity in find_named(
            lambda line: "" if needle in b"\0" + line else None, ours=ours
        )
    ]


def find_named(
    name_of: Callable[[bytes], str | None],
    *,
    ours: Callable[[int], bool] = lambda uid: uid == os.geteuid(),
) -> list[tuple[str, ProcessIdentity]]:
    """Processes but this one to whose command line (words, each with a zero byte behind it) ``name_of`` gives a name, with that name."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        with suppress(OSError):
            if not ours(entry.stat().st_uid):
                continue
            name = name_of((entry / "cmdline").read_bytes())
            identity = None if name is None else identify(int(entry.name))
            if name is not None and identity is not None:
                found.append((name, identity))
    return found


def has_in_environment(identity: ProcessIdentity, variable: str, value: str) -> bool:
    """Whether exactly this process was started with ``variable`` set to ``value``; False if the kernel does not let us look."""
    try:
        words = Path(f"/proc/{identity.pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return os.fsencode(f"{variable}={value}") in words and alive(identity)


def age_s(identity: ProcessIdentity) -> float:
    """For how long this process has been there, in seconds."""
    now_s = time.clock_gettime(time.CLOCK_BOOTTIME)
    return now_s - identity.start_ticks / os.sysconf("SC_CLK_TCK")
