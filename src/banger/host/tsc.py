"""How fast this host's time-stamp counter runs.

An emulated guest reads the host's counter. It must be told the frequency (calibrating it hangs some boots), and a wrong
one makes its clock run too fast or too slow by the same factor. /proc/cpuinfo shows the clock of the moment where the
CPU scales it, so the counter itself is measured against the kernel's clock.
"""

from __future__ import annotations

import ctypes
import mmap
import platform
import re
import time
from functools import cache
from pathlib import Path

_READ_TSC = bytes.fromhex("0f31 48c1e220 4809d0 c3")  # rdtsc; shl rdx, 32; or rax, rdx; ret
_WINDOW_S = 0.02
_TRIES = 5


@cache
def tsc_khz() -> int:
    """The counter's frequency in kHz, measured once in some 20 ms; 0 where it is not known."""
    if platform.machine() != "x86_64":
        return 0
    try:
        return _measure()
    except OSError:  # no executable memory for us on this host
        return cpuinfo_khz(Path("/proc/cpuinfo").read_text())


def cpuinfo_khz(text: str) -> int:
    """The first CPU's frequency in kHz that ``text`` (of /proc/cpuinfo) shows; 0 if it shows none."""
    found = re.search(r"^cpu MHz\s*:\s*(\d{1,6}(?:\.\d+)?)", text, re.MULTILINE)
    return int(float(found[1]) * 1000) if found else 0


def _measure() -> int:
    with mmap.mmap(
        -1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC
    ) as page:
        page.write(_READ_TSC)
        holder = ctypes.c_char.from_buffer(page)
        read = ctypes.CFUNCTYPE(ctypes.c_uint64)(ctypes.addressof(holder))
        try:
            begin_ns, begin = _sample(read)
            time.sleep(_WINDOW_S)
            end_ns, end = _sample(read)
        finally:
            del read, holder  # the page cannot be unmapped while they point into it
    return round((end - begin) * 1_000_000 / (end_ns - begin_ns))


def _sample(read: object) -> tuple[int, int]:
    """A moment on the raw clock in ns and the counter at it: the tightest of a few tries."""
    best = (1 << 62, 0, 0)
    for _ in range(_TRIES):
        before = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        ticks = read()  # type: ignore[operator]  # a ctypes function
        after = time.clock_gettime_ns(time.CLOCK_MONOTONIC_RAW)
        best = min(best, (after - before, (before + after) // 2, ticks))
    return best[1], best[2]
