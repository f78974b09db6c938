"""The filter of system calls, run as the kernel runs it."""

import re
import struct
from pathlib import Path

import pytest

from banger.host import seccomp

X86_64, AARCH64 = 0xC000003E, 0xC00000B7
ALLOW, KILL = 0x7FFF0000, 0x80000000
EPERM, ENOSYS = 0x00050001, 0x00050026
HEADER = Path("/usr/include/x86_64-linux-gnu/asm/unistd_64.h")


def verdict(code, number, arguments=(), architecture=X86_64):
    """What the kernel's virtual machine answers (linux/filter.h, the few instructions that are used)."""
    data = struct.pack("=IIQ6Q", number, architecture, 0, *(*arguments, 0, 0, 0, 0, 0, 0)[:6])
    lines = list(struct.iter_unpack("=HBBI", code))
    at, accumulator = 0, 0
    while True:
        kind, yes, no, value = lines[at]
        at += 1
        match kind:
            case 0x20:
                (accumulator,) = struct.unpack_from("=I", data, value)
            case 0x54:
                accumulator &= value
            case 0x06:
                return value
            case _:
                true = {
                    0x15: accumulator == value,
                    0x35: accumulator >= value,
                    0x45: bool(accumulator & value),
                }
                at += yes if true[kind] else no  # fmt: skip


@pytest.fixture
def code():
    return seccomp.program("x86_64", socket_ioctls=False)


@pytest.mark.parametrize("name", seccomp.FORBIDDEN)
def test_what_no_vmm_does_is_refused(code, name):
    assert verdict(code, seccomp.FORBIDDEN[name][0]) == EPERM


@pytest.mark.parametrize("name", [n for n, (_, arm) in seccomp.FORBIDDEN.items() if arm])
def test_it_is_refused_on_the_other_architecture_too(name):
    code = seccomp.program("aarch64", socket_ioctls=False)
    assert verdict(code, seccomp.FORBIDDEN[name][1], architecture=AARCH64) == EPERM


def test_what_a_vmm_does_is_allowed(code):
    for number in (
        0,
        1,
        9,
        17,
        46,
        59,
        202,
        232,
        257,
        318,
        334,
    ):  # read, mmap, sendmsg, execve, futex …
        assert verdict(code, number) == ALLOW


def test_threads_can_be_made_and_namespaces_cannot(code):
    threads = 0x003D0F00  # what the C library asks for
    assert verdict(code, 56, [threads]) == ALLOW
    for flag in (
        0x00020000,
        0x02000000,
        0x04000000,
        0x08000000,
        0x10000000,
        0x20000000,
        0x40000000,
    ):
        assert verdict(code, 56, [threads | flag]) == EPERM
    assert verdict(code, 435) == ENOSYS


def test_sockets_tell_nothing_of_their_network_unless_it_is_the_vmms_own(code):
    siocgifconf, kvm_run, tungetiff = 0x8912, 0xAE80, 0x800454D2
    assert verdict(code, 16, [4, siocgifconf]) == EPERM
    assert verdict(code, 16, [4, kvm_run]) == ALLOW
    assert verdict(code, 16, [4, tungetiff]) == ALLOW
    assert verdict(seccomp.program("x86_64", socket_ioctls=True), 16, [4, siocgifconf]) == ALLOW


def test_another_instruction_set_is_the_end(code):
    assert verdict(code, 1, architecture=0x40000003) == KILL  # 32-bit
    assert verdict(code, 0x40000000 | 101) == ENOSYS  # x32's ptrace


@pytest.mark.skipif(not HEADER.exists(), reason="the kernel's headers are not installed")
def test_numbers_are_those_of_the_kernels_header():
    known = dict(re.findall(r"#define __NR_(\w+)\s+(\d+)", HEADER.read_text()))
    wrong = {n: x for n, (x, _) in seccomp.FORBIDDEN.items() if n in known and int(known[n]) != x}
    assert wrong == {}
    assert len(seccomp.FORBIDDEN.keys() & known.keys()) > 40
