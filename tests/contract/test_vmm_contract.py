"""What every VMM promises (`engine.ports.Vmm`): one suite for the fake, for a real QEMU and for the Firecracker backend with a stand-in,
both of which boot toy kernels.
"""

import asyncio
import contextlib
import os
import signal

import pytest

from banger.host import probe, proc
from banger.model.errors import BangerError, GuestNotReadyError, HostLacksError, RefusedError
from banger.vmm.firecracker import process as firecracker_process
from banger.vmm.qemu import backend as qemu_backend
from banger.vmm.qemu import process as qemu_process
from banger.vmm.qemu.backend import QemuVmm
from tests.framework.fakes.vmm import FakeVmm
from tests.framework.played import played_vmm
from tests.framework.toy import toy_request

DEADLINE_S = 60
CALLS = ((qemu_process, "CALL_S"), (qemu_backend, "ADOPT_S"), (firecracker_process, "CALL_S"))


class FakeKind:
    socket, accel = "agent_socket", "tcg"

    def __init__(self):
        self.machines = {}

    def vmm(self):
        return FakeVmm(self.machines)

    def crash(self, running):
        running.crash()

    def hang(self, running, *, hung=True):
        running.hang(hung=hung)


class RealKind:
    """A VMM that is a process. While it hangs it is not waited for as long as one that this host may hold up."""

    def __init__(self, patience):
        self._patience = patience

    def crash(self, running):
        proc.send_signal(running.identity, signal.SIGKILL)

    def hang(self, running, *, hung=True):
        proc.send_signal(running.identity, signal.SIGSTOP if hung else signal.SIGCONT)
        self._patience.undo()
        for module, name in CALLS if hung else ():
            self._patience.setattr(module, name, 0.7)


class QemuKind(RealKind):
    socket, accel = "agent_socket", "tcg"

    def vmm(self):
        return QemuVmm(accel="tcg")


class FirecrackerKind(RealKind):
    socket, accel = "vsock_socket", "kvm"

    def __init__(self, patience, directory):
        super().__init__(patience)
        self.directory = directory

    def vmm(self):
        return played_vmm(self.directory)


@pytest.fixture(
    params=["fake", *(pytest.param(k, marks=pytest.mark.vm) for k in ("qemu", "firecracker"))]
)
def kind(request, monkeypatch, tmp_path_factory):
    if request.param == "fake":
        yield FakeKind()
        return
    answer = probe.qemu()
    if not answer:
        pytest.skip(answer.why)
    # A stand-in that is held up answers its start later than its guest has halted: then it is no failed start.
    monkeypatch.setattr(firecracker_process, "_SETTLE_S", 3)
    with pytest.MonkeyPatch.context() as patience:
        yield (
            QemuKind(patience)
            if request.param == "qemu"
            else FirecrackerKind(patience, tmp_path_factory.mktemp("fc"))
        )


@pytest.fixture
async def start(kind, tmp_path):
    """Launches a VM that behaves as asked; ends and forgets whatever is left."""
    begun = []

    async def launch(behaviour="idle", *, vmm=None):
        vmm = vmm or kind.vmm()
        request = toy_request(tmp_path / str(len(begun)), behaviour, root=vmm.root_formats[0])
        running = await vmm.launch(request)
        begun.append(running)
        return running, request

    yield launch
    for running in begun:
        if running.identity.pid < 2**22 and proc.alive(running.identity):
            await proc.kill(running.identity)
        await running.close()


async def in_time(awaitable):
    async with asyncio.timeout(DEADLINE_S):
        return await awaitable


async def runs_again(running):
    """A VMM that was stopped answers within the deadline, if not to the first call."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            with contextlib.suppress(GuestNotReadyError):
                return await running.status() == "running"


async def console_says(request, text):
    async with asyncio.timeout(DEADLINE_S):
        while text not in request.paths.console_log.read_bytes():
            await asyncio.sleep(0.01)


async def test_a_launched_vm_runs_and_says_what_it_is(start, kind):
    running, request = await start()
    assert await running.status() == "running"
    assert (running.vmm, running.accel) == (kind.vmm().name, kind.accel)
    assert getattr(request.paths, kind.socket).exists()
    await console_says(request, b"hello\n")


async def test_pausing_and_resuming_may_be_repeated(start):
    running, _ = await start()
    for _ in range(2):
        await running.pause()
        assert await running.status() == "paused"
    for _ in range(2):
        await running.resume()
        assert await running.status() == "running"


@pytest.mark.parametrize(
    ("behaviour", "reason", "console"),
    [
        ("off", "guest-shutdown", b"bye\n"),
        ("reset", "guest-reset", b"again\n"),
        ("panic", "guest-panic", b"Kernel panic"),
    ],
)
async def test_the_reason_of_an_end_is_told_however_soon_it_comes(
    start, behaviour, reason, console
):
    running, request = await start(behaviour)
    assert (await in_time(running.wait())).reason == reason
    assert console in request.paths.console_log.read_bytes()


async def test_the_power_button_reaches_the_guest(start):
    running, request = await start("obey")
    await console_says(request, b"waiting")
    await running.power_down()
    assert (await in_time(running.wait())).reason == "guest-shutdown"


async def test_a_guest_that_ignores_the_power_button_runs_on(start):
    running, _ = await start("idle")
    await running.power_down()
    assert await running.status() == "running"


async def test_a_killed_vmm_has_quit_and_all_who_wait_hear_it(start):
    running, _ = await start()
    waiting = [asyncio.create_task(running.wait()) for _ in range(3)]
    await asyncio.sleep(0)
    await running.kill()
    await running.kill()
    outcomes = [await in_time(task) for task in waiting] + [await running.wait()]
    assert {outcome.reason for outcome in outcomes} == {"quit"}


async def test_giving_up_waiting_does_not_harm_the_others(start):
    running, _ = await start()
    one, other = (asyncio.create_task(running.wait()) for _ in range(2))
    await asyncio.sleep(0)
    one.cancel()
    await asyncio.wait({one})
    await running.kill()
    assert (await in_time(other)).reason == "quit"


async def test_a_crash_names_the_signal(start, kind):
    running, _ = await start()
    kind.crash(running)
    outcome = await in_time(running.wait())
    assert outcome.reason == "crash"
    assert outcome.returncode == -9
    assert "SIGKILL" in outcome.detail


async def test_a_vmm_that_hangs_gives_an_error_in_time_and_can_be_killed(start, kind):
    running, _ = await start()
    kind.hang(running)
    async with asyncio.timeout(DEADLINE_S):
        for call in (running.status, running.pause, running.status):
            with pytest.raises(GuestNotReadyError):
                await call()
    await in_time(running.kill())
    assert (await running.wait()).reason == "quit"


async def test_a_vmm_that_hung_for_a_while_is_usable_again(start, kind):
    running, _ = await start()
    kind.hang(running)
    for _ in range(3):
        with pytest.raises(GuestNotReadyError):
            await running.status()
    kind.hang(running, hung=False)
    assert await runs_again(running)


async def test_calls_after_the_end_are_errors_not_hangs(start):
    running, _ = await start("off")
    await in_time(running.wait())
    for call in (running.status, running.pause, running.power_down):
        with pytest.raises(BangerError):
            await in_time(call())
    await in_time(running.kill())


async def test_a_missing_kernel_is_named_and_nothing_is_left(kind, tmp_path):
    vmm = kind.vmm()
    request = toy_request(tmp_path, root=vmm.root_formats[0])
    request.boot.kernel.unlink()
    with pytest.raises(HostLacksError, match="vmlinux-idle") as raised:
        await vmm.launch(request)
    assert raised.value.hint
    assert vmm.find(request.paths) is None
    assert os.listdir(request.paths.runtime) == []


async def test_a_vm_that_runs_is_not_started_again_and_takes_no_harm(start, kind):
    running, request = await start("obey")
    await console_says(request, b"waiting")
    with pytest.raises(RefusedError, match="toy"):
        await kind.vmm().launch(request)
    assert getattr(request.paths, kind.socket).exists()
    await running.power_down()
    assert (await in_time(running.wait())).reason == "guest-shutdown"


async def test_a_vm_is_found_while_it_runs_and_only_by_its_own_paths(start, kind, tmp_path):
    vmm = kind.vmm()
    first, one = await start(vmm=vmm)
    second, two = await start(vmm=vmm)
    assert vmm.find(one.paths) == first.identity
    assert vmm.find(two.paths) == second.identity
    for own, paths in ((first, one.paths), (second, two.paths)):
        found = vmm.all(paths.state.parent, paths.runtime.parent)
        assert list(found) == [(paths.state.name, own.identity)]
    await first.kill()
    assert vmm.find(one.paths) is None
    assert vmm.find(two.paths) == second.identity


async def test_a_vm_outlives_its_daemon_and_the_next_one_adopts_it(start, kind):
    running, request = await start("obey")
    await console_says(request, b"waiting")
    await running.close()
    adopted = await kind.vmm().adopt(running.identity, request.paths)
    try:
        assert adopted.identity == running.identity
        assert adopted.accel == running.accel
        assert await adopted.status() == "running"
        await adopted.power_down()
        assert (await in_time(adopted.wait())).reason == "guest-shutdown"
    finally:
        await adopted.close()


async def test_a_vmm_that_hangs_is_adopted_all_the_same(start, kind):
    running, request = await start()
    await running.close()
    kind.hang(running)
    adopted = await in_time(kind.vmm().adopt(running.identity, request.paths))
    try:
        with pytest.raises(GuestNotReadyError):
            await adopted.status()
        kind.hang(running, hung=False)
        assert await runs_again(adopted)
        await adopted.kill()
        assert (await in_time(adopted.wait())).reason == "quit"
    finally:
        await adopted.close()


async def test_a_vmm_that_is_gone_is_not_adopted(start, kind):
    running, request = await start()
    await running.kill()
    assert await kind.vmm().adopt(running.identity, request.paths) is None


async def test_a_usable_vmm_passes_its_check(kind):
    await kind.vmm().check()
