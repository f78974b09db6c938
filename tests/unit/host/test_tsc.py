"""The host's time-stamp counter."""

import platform
from pathlib import Path

import pytest

from banger.host import tsc

CPUINFO = Path("/proc/cpuinfo").read_text()
X86 = platform.machine() == "x86_64"


@pytest.fixture(autouse=True)
def measure_anew():
    tsc.tsc_khz.cache_clear()
    yield
    tsc.tsc_khz.cache_clear()


@pytest.mark.skipif(not X86, reason="x86 only")
def test_two_measurements_agree_to_one_in_ten_thousand():
    one = tsc.tsc_khz()
    tsc.tsc_khz.cache_clear()
    assert abs(tsc.tsc_khz() - one) < one / 10_000
    assert 500_000 < one < 8_000_000


@pytest.mark.skipif(
    not X86 or "hypervisor" not in CPUINFO,
    reason="a host that scales its clock shows another number",
)
def test_in_a_vm_it_is_what_the_kernel_says():
    assert abs(tsc.tsc_khz() - tsc.cpuinfo_khz(CPUINFO)) < tsc.tsc_khz() / 1000


@pytest.mark.skipif(not X86, reason="x86 only")
def test_without_executable_memory_the_kernels_number_is_taken(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(tsc.mmap, "mmap", refuse)
    assert tsc.tsc_khz() == tsc.cpuinfo_khz(CPUINFO)


def test_other_processors_have_none(monkeypatch):
    monkeypatch.setattr(tsc.platform, "machine", lambda: "aarch64")
    assert tsc.tsc_khz() == 0


@pytest.mark.parametrize(
    ("text", "khz"),
    [("cpu MHz\t\t: 2596.124\ncpu MHz\t\t: 99.0", 2596124), ("nothing", 0), ("cpu MHz : x", 0)],
)
def test_the_first_cpus_frequency_is_read(text, khz):
    assert tsc.cpuinfo_khz(text) == khz
