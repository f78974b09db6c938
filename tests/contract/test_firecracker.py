"""What the Firecracker backend does beyond the contract of all VMMs: with a stand-in that boots toy kernels."""

import asyncio
import os
import stat
import time

import pytest

from banger.host import probe, proc
from banger.model.errors import RefusedError
from banger.model.machine import DiskFormat
from banger.vmm.console import cap_log
from banger.vmm.firecracker import process
from tests.framework.played import played_vmm
from tests.framework.toy import toy_request

pytestmark = pytest.mark.vm
DEADLINE_S = 60


@pytest.fixture
async def start(tmp_path):
    """Launches a toy; ends and forgets whatever is left."""
    answer = probe.qemu()
    if not answer:
        pytest.skip(answer.why)
    begun = []

    async def launch(behaviour="idle", **play):
        request = toy_request(tmp_path / str(len(begun)), behaviour, root=DiskFormat.RAW)
        running = await played_vmm(tmp_path, **play).launch(request)
        begun.append(running)
        return running, request

    yield launch
    for running in begun:
        if proc.alive(running.identity):
            await proc.kill(running.identity)
        await running.close()


async def ended(running):
    async with asyncio.timeout(DEADLINE_S):
        return await running.wait()


async def console_says(request, text):
    async with asyncio.timeout(DEADLINE_S):
        while text not in request.paths.console_log.read_bytes():
            await asyncio.sleep(0.01)


async def test_a_guest_that_powers_off_ends_its_vmm_though_firecracker_goes_on(start, monkeypatch):
    """The kernel tells of its last word: who looks by and by does so here once in ten minutes."""
    monkeypatch.setattr(process, "_LOOK_AGAIN_S", 600)
    # A stand-in that is held up answers its start later than its guest has halted: then it is no failed start.
    monkeypatch.setattr(process, "_SETTLE_S", 3)
    running, request = await start("off")
    await console_says(request, b"System halted")
    began = time.monotonic()
    outcome = await ended(running)
    assert time.monotonic() - began < 30
    assert (outcome.reason, outcome.returncode) == ("guest-shutdown", -9)


async def test_a_guest_that_powered_off_while_no_daemon_was_there_is_ended_by_the_next(
    start, tmp_path, monkeypatch
):
    # Else the daemon ends it itself, if it is held up before it goes.
    monkeypatch.setattr(process, "_SETTLE_S", 600)
    running, request = await start("off")
    await running.close()
    monkeypatch.undo()
    await console_says(request, b"System halted")
    await asyncio.sleep(0.3)
    assert proc.alive(running.identity)
    adopted = await played_vmm(tmp_path).adopt(running.identity, request.paths)
    assert (await ended(adopted)).reason == "guest-shutdown"
    await adopted.close()


async def test_a_reset_after_the_power_button_counts_as_a_shutdown(start):
    """systemd answers Ctrl-Alt-Del with a reboot."""
    running, request = await start("obey")
    await console_says(request, b"waiting")
    await running.power_down()
    outcome = await ended(running)
    assert (outcome.reason, outcome.returncode) == ("guest-shutdown", 0)


@pytest.mark.parametrize(
    ("behaviour", "reason"), [("reset", "guest-reset"), ("panic", "guest-panic")]
)
async def test_the_end_of_an_adopted_vmm_is_told_by_its_log(start, behaviour, reason):
    """Its exit status is not for us to have."""
    from banger.host.confine import Confined
    from banger.vmm.firecracker.process import RunningFirecracker

    running, request = await start(behaviour)
    await ended(running)
    log = request.paths.vmm_log.read_text()
    assert "exit_code=0" in log.splitlines()[-1]
    orphan = RunningFirecracker(Confined(running.identity, ""), request.paths)
    outcome = await ended(orphan)
    assert (outcome.reason, outcome.returncode) == (reason, None)
    await orphan.close()


async def test_a_release_that_loses_the_agent_by_a_pause_is_not_paused(start):
    running, _ = await start("idle", release="1.16.1")
    with pytest.raises(RefusedError, match=r"1\.16\.1") as raised:
        await running.pause()
    assert raised.value.hint
    assert await running.status() == "running"


async def test_the_oldest_release_boots_a_guest(start):
    running, request = await start("idle", release="1.8.0")
    assert await running.status() == "running"
    await console_says(request, b"hello\n")


async def test_sockets_and_logs_are_for_their_user_only(start):
    _, request = await start()
    paths = request.paths
    for path in (paths.api_socket, paths.vsock_socket, paths.console_log, paths.vmm_log):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path


async def test_the_process_has_no_descriptor_of_the_daemon_and_a_session_of_its_own(start):
    running, request = await start()
    pid = running.identity.pid
    assert os.getsid(pid) == pid
    targets = {n: os.readlink(f"/proc/{pid}/fd/{n}") for n in ("0", "1", "2")}
    assert targets == {
        "0": "/dev/null",
        "1": str(request.paths.console_log),
        "2": str(request.paths.console_log),
    }


async def test_the_console_is_capped_under_the_running_guest_and_goes_on(start):
    _, request = await start("chatter")
    log = request.paths.console_log
    async with asyncio.timeout(DEADLINE_S):
        while log.stat().st_size < 50_000:
            await asyncio.sleep(0.01)
    assert cap_log(log, 20_000)
    async with asyncio.timeout(DEADLINE_S):
        while log.stat().st_size >= 50_000:  # held up after the cut, while the guest went on
            cap_log(log, 20_000)
    before = log.stat().st_size
    async with asyncio.timeout(DEADLINE_S):
        while log.stat().st_size == before:
            await asyncio.sleep(0.01)
    assert b"\0" not in log.read_bytes()


async def test_all_calls_of_a_vm_share_one_connection(start):
    running, _ = await start()
    first = running._api._stream
    await running.pause()
    await running.resume()
    await running.status()
    assert running._api._stream is first
