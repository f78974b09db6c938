"""Questions to the host: the answer, the reason and the next step."""

import errno
import os
import platform
import stat

import pytest

from banger.host import probe
from banger.host.probe import Answer


@pytest.fixture(autouse=True)
def ask_anew():
    probe.forget()
    yield
    probe.forget()


def program(path, script):
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


GOOD = """case "$1 $2" in
"--version ") echo "QEMU emulator version 8.2.1 (x)";;
"-machine help") echo "microvm    microvm (i386)"; echo "pc     Standard PC";;
"-accel help") echo "Accelerators supported in QEMU binary:"; echo tcg; echo kvm;;
"--help ") echo "-sandbox on[,obsolete=allow|deny]";;
esac"""


def test_an_answer_is_true_or_false_by_itself():
    assert Answer(ok=True)
    assert not Answer(ok=False, why="no")


def test_a_complete_qemu_is_found_and_named(tmp_path):
    path = program(tmp_path / "qemu", GOOD)
    assert probe.qemu(path) == Answer(ok=True, found=path)


@pytest.mark.parametrize(
    ("find", "put", "why"),
    [
        ("8.2.1", "6.2.0", "is not QEMU 7.0 or newer: QEMU emulator version 6.2.0"),
        ("QEMU emulator version 8.2.1", "hello 9.9.9", "is not QEMU 7.0 or newer: hello"),
        ("microvm    microvm", "micro", "has no microvm machine"),
        ("echo tcg", "true", "has no TCG accelerator"),
        ("-sandbox", "-nothing", "has no sandbox"),
    ],
)
def test_a_qemu_that_lacks_something_says_what(tmp_path, find, put, why):
    answer = probe.qemu(program(tmp_path / "qemu", GOOD.replace(find, put)))
    assert not answer
    assert why in answer.why
    assert answer.hint


def test_a_missing_qemu_says_how_to_get_it(monkeypatch):
    monkeypatch.setenv("PATH", "/nowhere")
    answer = probe.qemu()
    assert not answer
    assert "qemu-system-x86_64 was not found" in answer.why
    assert "apt-get install qemu-system-x86" in answer.hint


def test_a_qemu_that_crashes_is_no_qemu(tmp_path):
    answer = probe.qemu(program(tmp_path / "qemu", "exit 3"))
    assert not answer
    assert "ended with status 3" in answer.why
    assert "qemu_path" in answer.hint


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg)\n", (7, 2)),
        ("QEMU emulator version 10.0.0", (10, 0)),
        ("something 7.2", None),
        ("", None),
    ],
)
def test_versions_are_read(text, version):
    assert probe.qemu_version(text) == version


@pytest.mark.parametrize(
    ("flags", "can"),
    [
        ("fpu vmx sse", True),
        ("svm", True),
        ("fpu svm_lock avx", False),
        ("hypervisor vmx_x", False),
    ],
)
def test_only_whole_flags_count(flags, can):
    assert probe.cpu_virtualizes(f"processor\t: 0\nflags\t\t: {flags}\nbugs\t: vmx\n") is can


@pytest.mark.skipif(platform.machine() != "x86_64", reason="x86 flags")
def test_kvm_is_denied_without_a_flag_even_if_its_device_opens(monkeypatch):
    monkeypatch.setattr(probe, "cpu_virtualizes", lambda _: False)
    answer = probe.kvm()
    assert not answer
    assert "neither svm nor vmx" in answer.why


@pytest.mark.parametrize(
    ("number", "hint"),
    [
        (errno.EACCES, "usermod -aG kvm"),
        (errno.ENOENT, "modprobe kvm"),
        (errno.ENODEV, "modprobe kvm"),
    ],
)
def test_kvm_that_cannot_be_opened_says_what_to_do(monkeypatch, number, hint):
    monkeypatch.setattr(probe, "cpu_virtualizes", lambda _: True)

    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(probe.os, "open", refuse)
    answer = probe.kvm()
    assert not answer
    assert hint in answer.hint


def test_a_kvm_that_opens_but_makes_no_vm_is_none_and_leaves_no_descriptor(monkeypatch):
    monkeypatch.setattr(probe, "cpu_virtualizes", lambda _: True)
    real_open = os.open
    monkeypatch.setattr(probe.os, "open", lambda _path, flags: real_open("/dev/null", flags))
    before = len(os.listdir("/proc/self/fd"))
    answer = probe.kvm()
    assert not answer
    assert "KVM cannot make a VM" in answer.why
    assert len(os.listdir("/proc/self/fd")) == before


def test_kvm_works_only_with_version_vm_and_vcpu(monkeypatch):
    monkeypatch.setattr(probe, "cpu_virtualizes", lambda _: True)
    real_open = os.open
    monkeypatch.setattr(probe.os, "open", lambda _path, flags: real_open("/dev/null", flags))
    asked = []

    def ioctl(descriptor, request, *_):
        asked.append(request)
        return 12 if request == 0xAE00 else os.dup(descriptor)

    monkeypatch.setattr(probe.fcntl, "ioctl", ioctl)
    assert probe.kvm()
    assert asked == [0xAE00, 0xAE01, 0xAE41]


def test_reflinks_are_answered_for_a_directory(tmp_path):
    answer = probe.reflink(tmp_path)
    assert answer.ok or "cannot share blocks" in answer.why
    assert not probe.reflink(tmp_path / "no")


def test_loop_devices_are_real_or_explained():
    answer = probe.loop()
    if answer:
        assert stat.S_ISBLK(os.stat(answer.found).st_mode)
    else:
        assert answer.hint


def test_root_is_who_we_are(monkeypatch):
    assert probe.root().ok is (os.geteuid() == 0)
    monkeypatch.setattr(probe.os, "geteuid", lambda: 1000)
    assert probe.root().why == "running as uid 1000"
