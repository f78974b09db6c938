"""Starting a Firecracker that cannot be started: said plainly and in time, nothing left. The Firecrackers here are stand-ins, or scripts."""

import asyncio
import os
import socket
import stat
import subprocess
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from banger.host import proc
from banger.host.probe import Answer
from banger.model.errors import (
    CommandFailedError,
    GuestNotReadyError,
    HostLacksError,
    InvalidInputError,
)
from banger.model.machine import DiskFormat
from banger.vmm import launch
from banger.vmm.firecracker import backend
from banger.vmm.firecracker.binary import inspect
from banger.vmm.firecracker.process import RunningFirecracker
from tests.framework.installation import wait_until
from tests.framework.played import played_vmm, unconfined
from tests.framework.toy import toy_request

PATIENCE_S = 60  # a program that is held up on a busy machine is no silent one
IN_TIME_S = 30  # less, for what does not wait for its answers


@pytest.fixture(autouse=True)
def patient(monkeypatch):
    for name in ("API_S", "CONFIGURE_S", "START_S"):
        monkeypatch.setattr(backend, name, PATIENCE_S)


@pytest.fixture
def request_():
    with tempfile.TemporaryDirectory(prefix="bgr-") as directory:  # sockets have short paths
        yield toy_request(Path(directory) / "vm", root=DiskFormat.RAW)


@pytest.fixture
def program(tmp_path):
    """A script that is a Firecracker as far as its release goes."""

    def write(script):
        path = tmp_path / "firecracker"
        path.write_text(
            f"#!/bin/sh\ntest \"$1\" = --version && echo 'Firecracker v1.16.1' && exit\n{script}\n"
        )
        path.chmod(0o755)
        return unconfined(lambda: path)

    return write


def nothing_left(request):
    assert os.listdir(request.paths.runtime) == []
    assert proc.find_by_argument(str(request.paths.api_socket)) == []


async def failing(vmm, request, kind=HostLacksError):
    """What launching says; it must say it in time and leave nothing."""
    began = time.monotonic()
    with pytest.raises(kind) as raised:
        await vmm.launch(request)
    assert time.monotonic() - began < IN_TIME_S
    assert raised.value.hint
    nothing_left(request)
    return raised.value


async def test_its_last_words_and_its_log_are_quoted(request_, program):
    log = request_.paths.vmm_log
    error = await failing(
        program(
            f"echo 'Running' >> {log}; echo 'vcpu: IO read @ 0x70:0x1 failed' >> {log}; echo 'Error: oops' >&2; exit 1"
        ),
        request_,
    )
    assert error.what == "Firecracker for VM toy ended with status 1 before it was up"
    assert error.detail == "Running\nError: oops"


async def test_a_status_of_its_own_is_explained(request_, program):
    error = await failing(program("exit 148"), request_)
    assert error.what.endswith("broke its own seccomp filter before it was up")


async def test_only_what_this_run_said_is_quoted(request_, program):
    request_.paths.vmm_log.write_text("an old complaint\n")
    error = await failing(program("echo new >&2; kill -SEGV $$"), request_)
    assert error.what.endswith("was killed by SIGSEGV before it was up")
    assert error.detail == "new"


async def test_an_api_socket_that_never_appears_is_not_waited_for_for_ever(
    request_, tmp_path, monkeypatch
):
    monkeypatch.setattr(backend, "API_S", 0.3)
    monkeypatch.setattr(launch, "DYING_S", 0.1)
    error = await failing(played_vmm(tmp_path, binds=False), request_, GuestNotReadyError)
    assert error.what == "Firecracker did not open its API within 0.3 s"
    assert str(request_.paths.api_socket) in error.detail


@pytest.mark.parametrize("endpoint", ["PUT /machine-config", "PUT /vsock", "PUT /actions"])
async def test_a_request_that_is_never_answered_is_given_up(
    request_, tmp_path, monkeypatch, endpoint
):
    monkeypatch.setattr(backend, "CONFIGURE_S", 0.4)
    monkeypatch.setattr(backend, "START_S", 0.4)
    monkeypatch.setattr(launch, "DYING_S", 0.1)
    send = RunningFirecracker.send

    async def only_there(vmm, body, timeout_s):  # what it answers may take its time
        there = f"{body.endpoint.method} {body.target}" == endpoint
        await send(vmm, body, timeout_s if there else PATIENCE_S)

    monkeypatch.setattr(RunningFirecracker, "send", only_there)
    error = await failing(played_vmm(tmp_path, hang=(endpoint,)), request_, GuestNotReadyError)
    assert error.what == f"Firecracker did not answer {endpoint} within 0.4 s"


@pytest.mark.parametrize("way", ["garbage", "drop"])
async def test_an_answer_that_is_none_is_an_error(request_, tmp_path, monkeypatch, way):
    monkeypatch.setattr(launch, "DYING_S", 0.1)
    vmm = played_vmm(tmp_path, **{way: ("PUT /entropy",)})
    error = await failing(vmm, request_, GuestNotReadyError)
    assert error.what == "Firecracker did not answer PUT /entropy at all"


async def test_what_firecracker_refuses_is_told_in_its_words(request_, tmp_path):
    fault = "Drive config error: Unable to create the virtio block device"
    error = await failing(played_vmm(tmp_path, refuse={"PUT /drives/work": fault}), request_)
    assert error.what == "Firecracker cannot run VM toy"
    assert error.detail == f"PUT /drives/work: {fault}"
    assert error.hint == "banger doctor"


@pytest.mark.parametrize(
    ("fault", "hint"),
    [
        (
            "Start microvm error: Kvm error: Error creating KVM object: Permission denied (os error 13)",
            "sudo usermod -aG kvm $USER, then log in again",
        ),
        (
            "Start microvm error: Cannot load kernel due to invalid memory configuration or invalid kernel image",
            "banger image build debian --force",
        ),
        ("Start microvm error: Cannot open the TAP device", "banger doctor"),
    ],
)
async def test_a_vm_that_does_not_start_has_a_next_step_for_the_cause(
    request_, tmp_path, fault, hint
):
    error = await failing(played_vmm(tmp_path, refuse_start=fault), request_)
    assert error.detail == f"PUT /actions: {fault}"
    assert error.hint == hint


async def test_a_kernel_that_is_none_is_refused(request_, tmp_path):
    request_.boot.kernel.write_bytes(b"no kernel at all" * 1000)
    error = await failing(played_vmm(tmp_path), request_)
    assert "ernel" in error.detail
    assert error.hint == "banger image build debian --force"


async def test_a_cancelled_launch_ends_its_firecracker(request_, tmp_path):
    vmm = played_vmm(tmp_path, hang=("PUT /vsock",))
    task = asyncio.create_task(vmm.launch(request_))
    async with asyncio.timeout(10):
        while not request_.paths.api_socket.exists():
            await asyncio.sleep(0.01)
    identity = vmm.find(request_.paths)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not proc.alive(identity)
    nothing_left(request_)


async def test_a_program_that_cannot_be_started_leaves_nothing(request_, program, tmp_path):
    vmm = program("exit 0")
    inspect(tmp_path / "firecracker")  # looked at once, and not again for the same file
    text = (tmp_path / "firecracker").read_text()
    (tmp_path / "firecracker").write_text(text.replace("#!/bin/sh", "#!/no/such/shell"))
    with pytest.raises((CommandFailedError, HostLacksError)):
        await vmm.launch(request_)
    nothing_left(request_)


@pytest.mark.parametrize("name", ["overlay_raw", "work", "identity"])
async def test_a_drive_that_is_not_there_is_named(request_, tmp_path, name):
    path = getattr(request_.paths, name)
    path.unlink()
    error = await failing(played_vmm(tmp_path), request_)
    assert path.name in error.what
    assert "banger vm delete toy" in error.hint


@pytest.mark.parametrize("length", [89, 90, 100])
async def test_a_runtime_directory_with_too_long_a_path_says_what_to_set(tmp_path, length):
    with tempfile.TemporaryDirectory(prefix="bgr-", dir="/tmp") as directory:
        request = toy_request(Path(directory) / "vm", root=DiskFormat.RAW)
        runtime = Path(directory) / ("x" * (length - len(directory) - 1))
        runtime.mkdir()
        request = replace(request, paths=replace(request.paths, runtime=runtime))
        long = len(str(request.paths.vsock_socket)) > 107
        assert long == (length > 96)
        if long:
            with pytest.raises(InvalidInputError) as raised:
                await played_vmm(tmp_path).launch(request)
            assert "BANGER_RUNTIME_DIR" in raised.value.hint
            nothing_left(request)
        else:
            vmm = played_vmm(tmp_path, refuse_start="not today")
            assert "not today" in (await failing(vmm, request)).detail


async def test_stale_sockets_are_replaced_and_an_old_log_is_not_written_into(request_, tmp_path):
    for path in (request_.paths.api_socket, request_.paths.vsock_socket):
        path.write_text("stale")
    request_.paths.vmm_log.write_text("old\n" * 1000)
    await failing(played_vmm(tmp_path, refuse_start="not today"), request_)
    log = request_.paths.vmm_log
    assert "old" not in log.read_text()
    assert "Running Firecracker" in log.read_text()
    for path in (log, request_.paths.console_log):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


async def test_a_log_that_is_a_link_is_not_followed(request_, tmp_path):
    (tmp_path / "precious").write_text("precious")
    request_.paths.vmm_log.symlink_to(tmp_path / "precious")
    with pytest.raises(OSError, match="symbolic"):
        await played_vmm(tmp_path / "bin").launch(request_)
    assert (tmp_path / "precious").read_text() == "precious"
    nothing_left(request_)


def test_a_process_that_only_names_the_socket_is_not_taken_for_its_firecracker(request_):
    socket_path = str(request_.paths.api_socket)
    argv = ["sh", "-c", "read line", "--unix-socket", socket_path]
    with subprocess.Popen(argv, stdin=subprocess.PIPE) as curl:
        wait_until(lambda: proc.find_by_argument(socket_path), 30)
        assert [each.pid for each in proc.find_by_argument(socket_path)] == [curl.pid]
        assert unconfined(Path).find(request_.paths) is None
        curl.stdin.close()


def test_only_a_socket_is_made_private_never_what_a_link_in_its_place_leads_to(tmp_path):
    precious, link, path = tmp_path / "precious", tmp_path / "api.sock", tmp_path / "vsock.sock"
    precious.write_text("x")
    precious.chmod(0o644)
    link.symlink_to(precious)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        for each in (link, path, precious, tmp_path / "none"):
            backend._make_private(each)
    assert stat.S_IMODE(precious.stat().st_mode) == 0o644
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize(("root", "controllers"), [(True, True), (True, False), (False, True)])
def test_deserted_groups_of_others_are_told_by_who_could_remove_them(
    program, monkeypatch, root, controllers
):
    monkeypatch.setattr(backend.os, "geteuid", lambda: 0 if root else 1000)
    monkeypatch.setattr(backend.cgroup, "probe", lambda: Answer(ok=controllers))
    monkeypatch.setattr(backend.cgroup, "is_there", lambda vm_id: vm_id == "a" * 12)
    monkeypatch.setattr(backend.cgroup, "deserted", lambda: frozenset({"b" * 12}))
    found = program("exit 1").left(["a" * 12, "c" * 12])
    assert found == ({"a" * 12, "b" * 12} if root and controllers else {"a" * 12})
