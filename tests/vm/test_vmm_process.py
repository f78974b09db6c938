"""The QEMU process itself, with toy guests: how it is confined, and what it says about what it cannot do."""

import os
from pathlib import Path

import pytest

from banger.host import confine, probe
from banger.model.errors import HostLacksError
from banger.vmm.qemu.backend import QemuVmm
from tests.framework.toy import toy_request


@pytest.fixture
async def running(tmp_path):
    answer = probe.qemu()
    if not answer:
        pytest.skip(answer.why)
    request = toy_request(tmp_path)
    running = await QemuVmm(accel="tcg").launch(request)
    yield running, request
    await running.kill()
    await running.close()


def threads(pid):
    return [path / "status" for path in Path(f"/proc/{pid}/task").iterdir()]


async def test_every_thread_has_a_system_call_filter(running):
    vmm, _ = running
    states = [
        line
        for path in threads(vmm.identity.pid)
        for line in path.read_text().splitlines()
        if "Seccomp:" in line
    ]
    assert len(states) >= 2
    assert {line.split()[1] for line in states} == {"2"}


async def test_every_thread_has_qemus_filter_on_top_of_ours(running):
    vmm, _ = running
    texts = [path.read_text() for path in threads(vmm.identity.pid)]
    counts = {line.split()[1] for text in texts for line in text.splitlines() if "_filters" in line}
    assert counts <= {"2"}  # an old kernel does not count them


async def test_it_runs_with_what_it_was_given_alone(running):
    """As `tests.host.test_confine` shows of any program; here QEMU's own files are the question."""
    vmm, request = running
    answer = await confine.probe_confinement()
    if not answer:
        pytest.skip(answer.why)
    assert (vmm.confinement, vmm.warning) == ("confined", "")
    root = Path(f"/proc/{vmm.identity.pid}/root")
    assert sorted(os.listdir(root / "dev")) == ["null", "urandom"]
    assert set(os.listdir(root)) <= {
        "dev",
        "etc",
        "lib",
        "lib64",
        "tmp",
        "usr",
        *request.paths.state.parts,
    }
    assert os.listdir(root / "etc") == ["ld.so.cache"]
    assert not (root / str(request.paths.runtime).lstrip("/")).exists()
    in_state = sorted(os.listdir(root / str(request.paths.state).lstrip("/")))
    assert in_state == ["console.log", "identity.tar", "overlay.qcow2", "work.img"]


async def test_it_holds_no_descriptor_of_ours_but_what_it_was_given(running):
    vmm, request = running
    targets = {os.readlink(path) for path in Path(f"/proc/{vmm.identity.pid}/fd").iterdir()}
    files = {
        target for target in targets if target.startswith("/") and not target.startswith("/dev/")
    }
    assert files == {
        str(path)
        for path in (
            request.paths.console_log,
            request.paths.vmm_log,
            request.paths.overlay,
            request.paths.work,
            request.paths.identity,
            request.boot.rootfs,
        )
    }


async def test_it_has_a_session_of_its_own(running):
    vmm, _ = running
    assert os.getsid(vmm.identity.pid) == vmm.identity.pid


async def test_its_sockets_and_console_are_private(running):
    _, request = running
    for path in (
        request.paths.qmp_socket,
        request.paths.agent_socket,
        request.paths.bulk_socket(1),
        request.paths.console_log,
    ):
        assert path.stat().st_mode & 0o077 == 0


async def test_an_overlay_that_is_none_is_told_in_qemus_words(tmp_path):
    request = toy_request(tmp_path)
    request.paths.overlay.write_bytes(bytes(1 << 20))
    with pytest.raises(HostLacksError, match="before it was up") as raised:
        await QemuVmm(accel="tcg").launch(request)
    assert "not in qcow2 format" in raised.value.detail
    assert os.listdir(request.paths.runtime) == []


async def test_a_used_disk_is_told(running, tmp_path):
    """In QEMU's words. (The path of a socket in tmp_path may have 107 bytes.)"""
    _, request = running
    twin = toy_request(tmp_path / "b")
    twin.paths.overlay.unlink()
    twin.paths.overlay.symlink_to(request.paths.overlay)
    with pytest.raises(HostLacksError) as raised:
        await QemuVmm(accel="tcg").launch(twin)
    assert "lock" in raised.value.detail
    assert await running[0].status() == "running"
