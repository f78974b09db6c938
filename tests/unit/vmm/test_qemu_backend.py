"""Starting a QEMU that cannot be started: said plainly, nothing left. The QEMUs here are shell scripts."""

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from banger.host import probe, proc
from banger.host.confine import Policy
from banger.host.probe import Answer
from banger.model.errors import (
    CommandFailedError,
    GuestNotReadyError,
    HostLacksError,
    InvalidInputError,
)
from banger.vmm import launch
from banger.vmm.qemu import args, backend
from banger.vmm.qemu.backend import QemuVmm
from tests.framework.installation import wait_until
from tests.framework.toy import toy_request


@pytest.fixture
def request_():
    with tempfile.TemporaryDirectory(prefix="bgr-") as directory:  # sockets have short paths
        yield toy_request(Path(directory) / "vm")


@pytest.fixture
def program(tmp_path):
    def write(script):
        path = tmp_path / "qemu"
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return write


@pytest.fixture(autouse=True)
def ask_anew():
    probe.forget()
    yield
    probe.forget()


def Scripted(program):  # noqa: N802  stands where QemuVmm does
    """A backend whose QEMU is a script, which cannot be confined."""
    return QemuVmm(accel="tcg", program=program, policy=Policy.OFF)


def nothing_left(request):
    assert os.listdir(request.paths.runtime) == []
    # A child that a script has just forked has its arguments until it becomes another program.
    wait_until(lambda: proc.find_by_argument(args.console(request.paths)) == [], 10)


async def test_a_qemu_that_ends_at_once_is_quoted(request_, program):
    qemu = program("echo 'qemu: could not set up guest memory' >&2; exit 1")
    with pytest.raises(
        HostLacksError, match="QEMU for VM toy ended with status 1 before it was up"
    ) as raised:
        await Scripted(program=qemu).launch(request_)
    assert raised.value.detail == "qemu: could not set up guest memory"
    nothing_left(request_)


async def test_only_what_this_run_said_is_quoted(request_, program):
    request_.paths.vmm_log.write_text("an old complaint\n")
    with pytest.raises(HostLacksError) as raised:
        await Scripted(program=program("echo new >&2; kill -SEGV $$")).launch(request_)
    assert raised.value.what.endswith("was killed by SIGSEGV before it was up")
    assert raised.value.detail == "new"
    assert request_.paths.vmm_log.read_text() == "an old complaint\nnew\n"


async def test_the_consoles_end_is_quoted_too(request_, program):
    script = f"echo 'guest says no' > {request_.paths.console_log}; exit 1"
    with pytest.raises(HostLacksError) as raised:
        await Scripted(program=program(script)).launch(request_)
    assert raised.value.detail == "last lines of the console:\nguest says no"


async def test_a_qemu_that_never_answers_is_ended(request_, program, monkeypatch):
    monkeypatch.setattr(backend, "LAUNCH_S", 0.2)
    monkeypatch.setattr(launch, "DYING_S", 0.1)
    with pytest.raises(GuestNotReadyError):
        await Scripted(program=program("exec sleep 86399")).launch(request_)
    nothing_left(request_)


async def test_a_cancelled_launch_ends_its_qemu(request_, program):
    vmm = Scripted(program=program("sleep 86398.5"))
    task = asyncio.create_task(vmm.launch(request_))
    async with asyncio.timeout(10):
        while vmm.find(request_.paths) is None:
            await asyncio.sleep(0.01)
    identity = vmm.find(request_.paths)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not os.path.exists(f"/proc/{identity.pid}")
    nothing_left(request_)
    for leftover in proc.find_by_argument(
        "86398.5"
    ):  # the script's own child, which a real QEMU may not have
        await proc.kill(leftover)


async def test_a_program_that_is_no_program_leaves_nothing(request_, tmp_path):
    with pytest.raises(CommandFailedError, match="could not be started"):
        await Scripted(program=str(tmp_path / "none")).launch(request_)
    nothing_left(request_)


@pytest.mark.parametrize("name", ["overlay", "work", "identity"])
async def test_a_drive_that_is_not_there_is_named(request_, name):
    getattr(request_.paths, name).unlink()
    with pytest.raises(HostLacksError, match=getattr(request_.paths, name).name) as raised:
        await QemuVmm(accel="tcg").launch(request_)
    assert "banger vm delete toy" in raised.value.hint
    nothing_left(request_)


async def test_a_runtime_directory_with_too_long_a_path_says_what_to_set(tmp_path):
    request = toy_request(tmp_path / ("x" * 100))
    with pytest.raises(InvalidInputError) as raised:
        await QemuVmm(accel="tcg").launch(request)
    assert "BANGER_RUNTIME_DIR" in raised.value.hint
    nothing_left(request)


def test_an_unknown_accelerator_is_refused():
    with pytest.raises(InvalidInputError, match="'hvf'"):
        QemuVmm(accel="hvf")


@pytest.mark.parametrize(("works", "accel"), [(True, "kvm"), (False, "tcg")])
def test_auto_takes_kvm_only_where_it_works(monkeypatch, works, accel):
    monkeypatch.setattr(backend.probe, "kvm", lambda: Answer(ok=works))
    assert QemuVmm().accel == accel
    assert QemuVmm(accel="tcg").accel == "tcg"


async def test_kvm_that_was_demanded_and_does_not_work_fails_the_check(monkeypatch):
    def no_kvm():
        return Answer(ok=False, why="no svm", hint="buy another CPU")

    no_kvm.cache_clear = lambda: None
    monkeypatch.setattr(backend.probe, "kvm", no_kvm)
    with pytest.raises(HostLacksError, match="KVM was asked for") as raised:
        await QemuVmm(accel="kvm").check()
    assert raised.value.detail == "no svm\nbuy another CPU"
    await QemuVmm().check()


async def test_a_qemu_that_is_installed_later_is_found(tmp_path, program):
    vmm = Scripted(str(tmp_path / "qemu"))
    with pytest.raises(HostLacksError, match="QEMU cannot run VMs here") as raised:
        await vmm.check()
    assert raised.value.hint
    program(
        'case "$*" in --version) echo "QEMU emulator version 9.0.0";; "-machine help") echo "microvm x";; '
        '"-accel help") echo tcg;; --help) echo "-sandbox on";; esac'
    )
    await vmm.check()


def test_a_link_to_qemu_is_started_as_what_it_leads_to(tmp_path):
    (tmp_path / "real").mkdir()
    program, link = tmp_path / "real" / "qemu", tmp_path / "qemu-link"
    program.touch()
    link.symlink_to(program)
    assert QemuVmm(program=str(link))._find_program() == str(program.resolve())
