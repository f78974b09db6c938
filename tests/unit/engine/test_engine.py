"""Operations on VMs over a host in memory: what succeeds, what fails, and that nothing is left behind."""

import asyncio
import time
from dataclasses import replace

import pytest

from banger.engine import boot
from banger.engine.adjust import Changes
from banger.engine.image_work import ImageWork
from banger.engine.plans import CREATE
from banger.engine.reconcile import reconcile
from banger.host import faults, proc
from banger.model.clock import Deadline
from banger.model.errors import HostLacksError, InvalidInputError, NotFoundError, RefusedError
from banger.model.spec import Forward, NetworkMode, VmSpec
from banger.model.state import OperationState, VmState, WaitFor
from tests.framework.stages import CREATE_STAGES

SPEC = VmSpec(disk_bytes=1 << 30, work_bytes=1 << 30)


async def make(engine, name="one", spec=SPEC, *, start=True, ready_s=None, wait=WaitFor.SERVICES):
    run = engine.create(name, "debian", spec, start=start, ready_s=ready_s, wait=wait)
    return await asyncio.wait_for(run.wait(), 10)


async def finished(engine, record):
    run = engine.context.board.live(record.id)
    return await asyncio.wait_for(run.wait(), 10) if run else engine.context.board.get(record.id)


def time_runs_once_connected(monkeypatch, world, seconds):
    """A guest has all the time until its agent is connected, and these seconds for its services, however long this host is held up."""
    left = property(lambda _: seconds if world.most_at_once else 60)
    monkeypatch.setattr(Deadline, "remaining_s", left)


def test_the_stages_of_create_are_those_of_the_contract():
    assert [step.name for step in CREATE] == CREATE_STAGES


async def test_create_makes_a_running_ready_vm_in_the_contracts_stages(engine):
    record = await make(engine)
    assert record.state is OperationState.SUCCEEDED, record.error
    assert [stage.name for stage in record.stages] == CREATE_STAGES
    assert all(stage.duration_ms is not None for stage in record.stages)
    machine = engine.resolve("one")
    assert machine.state is VmState.RUNNING
    assert machine.ready
    assert machine.record.run.network == "user"


@pytest.mark.parametrize("wait", [WaitFor.BOOTED, WaitFor.AGENT])
async def test_a_vm_that_was_not_waited_for_runs_and_its_readiness_is_seen_when_it_comes(
    engine, world, monkeypatch, wait
):
    monkeypatch.setattr(boot, "RETRY_S", 0.01)
    world.agent_answers, world.serves = wait is WaitFor.AGENT, False
    record = await make(engine, wait=wait)
    assert record.state is OperationState.SUCCEEDED, record.error
    assert "services" not in [stage.name for stage in record.stages]
    machine = engine.resolve("one")
    assert (machine.state, machine.ready) == (VmState.RUNNING, False)
    for _ in range(5):
        await asyncio.sleep(0.01)
        assert not machine.ready
    world.agent_answers = world.serves = True
    async with asyncio.timeout(30):
        while not machine.ready:
            await asyncio.sleep(0.01)
    assert machine.services == {"ssh": True}


async def test_asking_for_readiness_ends_with_the_run(engine, world):
    world.serves = False
    await make(engine, wait=WaitFor.AGENT)
    machine = engine.resolve("one")
    checker = machine.checker
    await finished(engine, engine.stop(machine, None, force=True))
    assert checker.done()
    assert machine.checker is None
    machine.services = {"ssh": True}
    await finished(engine, engine.start(machine, None, WaitFor.AGENT))
    assert machine.services == {"ssh": False}  # of this run, not of the one before
    await finished(engine, engine.stop(machine, None, force=True))
    world.serves = True
    record = await finished(engine, engine.start(machine, None))
    assert record.state is OperationState.SUCCEEDED, record.error
    assert machine.ready


async def test_a_service_that_never_answers_is_named(engine, world, monkeypatch):
    world.serves = False
    time_runs_once_connected(monkeypatch, world, 0.1)
    record = await make(engine, ready_s=0.1)
    assert record.error.code == "guest-not-ready"
    assert record.error.what.endswith("a service did not answer (ssh)")


async def test_a_question_that_the_guest_leaves_unanswered_is_asked_again(engine, world):
    world.agent_answers = False
    asyncio.get_running_loop().call_later(0.3, setattr, world, "agent_answers", True)
    record = await make(engine)
    assert record.state is OperationState.SUCCEEDED, record.error


async def test_an_agent_that_falls_silent_is_named(engine, world, monkeypatch):
    world.agent_answers = False
    time_runs_once_connected(monkeypatch, world, 0.3)
    record = await make(engine, ready_s=0.3)
    assert record.error.code == "guest-not-ready"
    assert "its agent does not answer any more: the agent did not answer" in record.error.what


async def test_ssh_gets_a_forward_without_being_asked(engine, world):
    await make(engine)
    (forward,) = engine.resolve("one").record.forwards
    assert forward.guest_port == 22
    assert forward.host_port in world.ports


async def test_the_network_is_told_who_may_go_out(engine, world):
    await make(engine, "in", VmSpec(disk_bytes=1 << 30, nat=False))
    await make(engine, "out")
    outward = {engine.resolve(name).id: name == "out" for name in ("in", "out")}
    assert world.outward == outward


async def test_a_vm_without_network_has_no_forward(engine, world):
    await make(engine, spec=VmSpec(disk_bytes=1 << 30, network=NetworkMode.NONE))
    assert world.ports == set()


@pytest.mark.parametrize("stage", ["validate", "disks", "identity", "network", "vmm"])
async def test_a_create_that_fails_on_the_host_leaves_nothing(engine, world, stage):
    before = world.inventory()
    world.fail_at = {stage}
    record = await make(engine)
    assert record.state is OperationState.FAILED
    assert record.error.what == f"told to fail at {stage}"
    assert world.inventory() == before
    assert engine.machines() == []
    assert engine.context.store.vms() == []
    assert engine.context.store.ledger() == []
    world.fail_at = set()
    assert (await make(engine)).state is OperationState.SUCCEEDED


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("stage", CREATE_STAGES)
async def test_create_survives_an_error_at_every_trace_point(engine, world, stage, where):
    before = world.inventory()
    faults.load(f"vm.create.{stage}.{where}=error")
    try:
        record = await make(engine)
    finally:
        faults.load("")
    assert record.state is OperationState.FAILED
    assert world.inventory() == before
    assert engine.context.store.ledger() == []
    assert engine.machines() == []


@pytest.mark.parametrize("stage", CREATE_STAGES)
async def test_create_can_be_cancelled_at_every_stage(engine, world, stage):
    before = world.inventory()
    faults.load(f"vm.create.{stage}.before=hang")
    try:
        run = engine.create("one", "debian", SPEC, start=True, ready_s=None)
        async for event, _ in run.watch():
            if event is not None and event.name == stage:
                break
        run.cancel()
        record = await asyncio.wait_for(run.wait(), 10)
    finally:
        faults.load("")
    assert record.state is OperationState.CANCELLED
    assert world.inventory() == before
    assert engine.context.store.vms() == []


async def test_a_guest_that_never_gets_ready_leaves_a_stopped_vm_with_the_consoles_tail(
    engine, world
):
    world.boots = False
    record = await make(engine, ready_s=0.2)
    assert record.error.code == "guest-not-ready"
    assert "stuck" in record.error.detail
    machine = engine.resolve("one")
    assert machine.state is VmState.STOPPED
    assert machine.record.last_error == record.error
    assert world.vmms == {}
    assert world.taps == set()
    deleted = await finished(engine, engine.delete(machine))
    assert deleted.state is OperationState.SUCCEEDED
    assert engine.machines() == []


async def test_a_guest_that_panics_at_boot_leaves_a_failed_vm(engine, world):
    world.boots, world.dies_at_boot = False, "guest-panic"
    record = await make(engine)
    assert record.error.code == "vmm-died"
    assert "panicked" in record.error.what
    assert engine.resolve("one").state is VmState.FAILED


async def test_a_vmm_that_crashes_is_noticed_at_once(engine, world):
    await make(engine)
    machine = engine.resolve("one")
    machine.vmm.end("crash", "killed by SIGSEGV")
    async with asyncio.timeout(30):
        while machine.state is not VmState.FAILED:
            await asyncio.sleep(0.01)
    assert "SIGSEGV" in machine.record.last_error.detail
    assert not machine.ready
    assert world.taps == set()
    assert world.ports == set()


async def test_a_guest_that_powers_off_is_stopped_without_an_error(engine):
    await make(engine)
    machine = engine.resolve("one")
    machine.vmm.end("guest-shutdown")
    async with asyncio.timeout(30):
        while machine.state is not VmState.STOPPED:
            await asyncio.sleep(0.01)
    assert machine.record.last_error is None


async def test_a_guest_that_reboots_is_started_again(engine):
    await make(engine)
    machine = engine.resolve("one")
    machine.vmm.end("guest-reset")
    async with asyncio.timeout(30):
        while (
            engine.context.board.newest(1)[0].kind != "vm.start"
            or machine.state is not VmState.RUNNING
        ):
            await asyncio.sleep(0.01)
    assert machine.ready


async def test_stop_asks_the_guest_and_start_brings_it_back_with_the_same_port(engine):
    await make(engine)
    machine = engine.resolve("one")
    port = machine.record.forwards[0].host_port
    stopped = await finished(engine, engine.stop(machine, None, force=False))
    assert [stage.detail for stage in stopped.stages] == ["", ""]
    assert machine.state is VmState.STOPPED
    await finished(engine, engine.start(machine, None))
    assert machine.state is VmState.RUNNING
    assert machine.record.forwards[0].host_port == port


async def test_a_guest_that_ignores_shutdown_is_ended_and_the_stage_says_so(engine, world):
    await make(engine)
    world.obeys = False
    machine = engine.resolve("one")
    stopped = await finished(engine, engine.stop(machine, 0.1, force=False))
    assert "did not power off" in stopped.stages[0].detail
    assert machine.state is VmState.STOPPED
    assert world.vmms == {}


async def test_a_guest_gets_the_time_to_shut_down_that_was_asked_for_also_above_the_default(
    engine, world
):
    await make(engine)
    world.obeys = False
    machine = engine.resolve("one")
    vmm = machine.vmm
    record = engine.stop(machine, 60, force=False)
    async for stage, _ in engine.context.board.live(record.id).watch():
        if stage is not None:  # the guest's time runs from here on
            break
    asyncio.get_running_loop().call_later(0.6, vmm.end, "guest-shutdown")  # the default is 0.3 s
    stopped = await finished(engine, record)
    assert stopped.stages[0].detail == ""
    assert 0.5 < stopped.stages[0].duration_ms / 1000 < 50  # not all that it was given


async def test_stop_cuts_a_hanging_start_short(engine, world):
    await make(engine)
    machine = engine.resolve("one")
    await finished(engine, engine.stop(machine, None, force=True))
    world.hang_at = {"agent"}
    start = engine.start(machine, None)
    await asyncio.wait_for(world.hanging.wait(), 30)
    await finished(engine, engine.stop(machine, None, force=False))
    assert (await finished(engine, start)).state is OperationState.CANCELLED
    assert machine.state is VmState.STOPPED
    assert world.vmms == {}


async def test_delete_cuts_a_hanging_create_short_and_succeeds(engine, world):
    before = world.inventory()
    world.hang_at = {"agent"}
    run = engine.create("one", "debian", SPEC, start=True, ready_s=None)
    await asyncio.wait_for(world.hanging.wait(), 30)
    delete = engine.delete(engine.resolve("one"))
    assert (await asyncio.wait_for(run.wait(), 30)).state is OperationState.CANCELLED
    record = await finished(engine, delete)
    assert record.state is OperationState.SUCCEEDED
    assert engine.machines() == []
    assert world.inventory() == before


async def test_twenty_creates_at_once_all_succeed_two_at_a_time(engine, world):
    runs = [engine.create(f"vm-{n}", "debian", SPEC, start=True, ready_s=None) for n in range(20)]
    records = await asyncio.wait_for(asyncio.gather(*(run.wait() for run in runs)), 20)
    assert {record.state for record in records} == {OperationState.SUCCEEDED}
    assert world.most_at_once == 2
    queued = [r for r in records if "queued" in r.stages[CREATE_STAGES.index("network")].detail]
    assert len(queued) == 18
    assert len({machine.lease.ip for machine in engine.machines()}) == 20


async def test_a_vm_that_waits_for_others_to_boot_says_so_meanwhile(engine, world):
    world.hang_at = {"agent"}
    first = [engine.create(name, "debian", SPEC, start=True, ready_s=None) for name in "ab"]
    waiting = engine.create("c", "debian", SPEC, start=True, ready_s=None)
    async with asyncio.timeout(30):
        async for stage, _ in waiting.watch():
            if stage is not None and stage.detail.startswith("queued"):
                break
    assert stage.name == "network"
    assert waiting.record.stages[-1].detail.startswith("queued")
    world.hang_at = set()
    for run in first:
        run.cancel()
    record = await asyncio.wait_for(waiting.wait(), 10)
    assert record.state is OperationState.SUCCEEDED
    assert "user, queued " in record.stages[CREATE_STAGES.index("network")].detail


async def test_an_image_that_goes_while_a_create_waits_fails_it_and_leaves_nothing(engine, world):
    """By banger it cannot be deleted then; somebody removes its directory."""
    before = world.inventory()
    world.hang_at = {"agent"}
    first = [engine.create(name, "debian", SPEC, start=True, ready_s=None) for name in "ab"]
    waiting = engine.create("c", "debian", SPEC, start=True, ready_s=None)
    async with asyncio.timeout(30):
        async for stage, _ in waiting.watch():
            if stage is not None and stage.detail.startswith("queued"):
                break
    with pytest.raises(RefusedError, match="used by 3 VMs"):
        await ImageWork(engine).delete("debian")
    images = engine.context.images.images
    kept = dict(images)
    images.clear()
    world.hang_at = set()
    for run in first:
        run.cancel()
        await asyncio.wait_for(run.wait(), 10)
    record = await asyncio.wait_for(waiting.wait(), 10)
    assert record.state is OperationState.FAILED
    assert record.error.code == "not-found"
    assert record.error.hint.startswith("banger image build")
    assert engine.machines() == []
    assert world.inventory() == before
    images.update(kept)
    assert (await make(engine, "again")).state is OperationState.SUCCEEDED


async def test_a_taken_name_and_a_taken_port_are_refused(engine, world):
    await make(engine)
    with pytest.raises(RefusedError, match="taken"):
        engine.create("one", "debian", SPEC, start=True, ready_s=None)
    world.foreign_ports = {8080}
    before = world.inventory()
    record = await make(engine, "two", VmSpec(disk_bytes=1 << 30, forwards=(Forward(8080, 80),)))
    assert record.error.code == "refused"
    assert world.inventory() == before


@pytest.mark.parametrize(
    "name",
    ["", "x" * 64, "x" * 200, "naïve", "../x", "-a", "a-", "A", "a b", "a.b", "abcdefabcdef"],
)
async def test_bad_names_are_refused_with_the_rule(engine, name):
    with pytest.raises(InvalidInputError) as caught:
        engine.create(name, "debian", SPEC, start=True, ready_s=None)
    assert caught.value.hint
    assert engine.machines() == []


async def test_an_unknown_image_says_how_to_get_one(engine):
    with pytest.raises(NotFoundError) as caught:
        engine.create("one", "plan9", SPEC, start=True, ready_s=None)
    assert "image build" in caught.value.hint


async def test_a_disk_below_the_images_size_is_refused_with_the_minimum(engine):
    with pytest.raises(InvalidInputError) as caught:
        engine.create("one", "debian", VmSpec(disk_bytes=512 << 20), start=True, ready_s=None)
    assert "1G" in caught.value.hint


async def test_set_changes_a_stopped_vm_and_refuses_a_running_one(engine, world):
    await make(engine)
    machine = engine.resolve("one")
    with pytest.raises(RefusedError, match="is running"):
        await engine.change(machine, Changes(vcpus=4))
    await finished(engine, engine.stop(machine, None, force=True))
    await engine.change(machine, Changes(name="new", vcpus=4, work_bytes=2 << 30))
    assert engine.resolve("new").record.spec.vcpus == 4
    assert world.known_hosts[machine.id] == "new"
    with pytest.raises(RefusedError, match="cannot shrink"):
        await engine.change(machine, Changes(work_bytes=1 << 30))


async def test_pause_and_resume(engine):
    await make(engine)
    machine = engine.resolve("one")
    await finished(engine, engine.pause(machine))
    assert machine.state is VmState.PAUSED
    await finished(engine, engine.resume(machine))
    assert machine.state is VmState.RUNNING


async def test_resume_sets_the_clock_that_stood_still(engine, world):
    await make(engine)
    machine = engine.resolve("one")
    await finished(engine, engine.pause(machine))
    before_ms = time.time() * 1000
    await finished(engine, engine.resume(machine))
    (clock_ms,) = world.clocks_ms
    assert before_ms - 1 <= clock_ms <= time.time() * 1000


async def test_a_guest_whose_agent_is_silent_is_resumed_all_the_same_and_the_stage_says_so(
    engine, world
):
    await make(engine)
    machine = engine.resolve("one")
    await finished(engine, engine.pause(machine))
    world.agent_answers = False
    record = await finished(engine, engine.resume(machine))
    assert record.state is OperationState.SUCCEEDED
    assert record.stages[-1].name == "clock"
    assert record.stages[-1].detail.startswith("not set: ")
    assert machine.state is VmState.RUNNING


@pytest.mark.parametrize("lost", [1, 2])
async def test_a_boot_that_lost_its_timer_is_done_again_and_the_stages_say_so(engine, world, lost):
    world.timers_lost = lost
    record = await make(engine)
    assert record.state is OperationState.SUCCEEDED
    broken = [stage for stage in record.stages if stage.state is OperationState.FAILED]
    assert [(stage.name, stage.detail) for stage in broken] == [("boot", "its kernel found no timer on the busy host")] * lost  # fmt: skip
    assert [stage.name for stage in record.stages].count("vmm") == lost + 1
    assert world.launched == lost + 1
    assert len(world.vmms) == len(world.taps) == 1
    machine = engine.resolve("one")
    assert (machine.state, machine.ready, machine.record.last_error) == (VmState.RUNNING, True, None)  # fmt: skip


async def test_a_timer_that_is_lost_again_and_again_fails_the_start_and_leaves_the_vm(
    engine, world
):
    world.timers_lost = 9
    record = await make(engine)
    assert record.state is OperationState.FAILED
    assert record.error.what == "VM one did not boot: its emulated kernel found no timer"
    assert record.error.code == "guest-not-ready"
    assert world.launched == 3
    assert world.vmms == {}
    machine = engine.resolve("one")
    assert machine.state is VmState.STOPPED
    world.timers_lost = 0
    assert (await finished(engine, engine.start(machine, None))).state is OperationState.SUCCEEDED


async def test_references_are_names_ids_and_unique_prefixes(engine):
    await make(engine)
    machine = engine.resolve("one")
    assert engine.resolve(machine.id) is machine
    assert engine.resolve(machine.id[:4]) is machine
    with pytest.raises(NotFoundError):
        engine.resolve("")
    with pytest.raises(NotFoundError):
        engine.resolve("zz")


async def test_a_restarted_daemon_adopts_running_vms_with_their_ports(engine, world):
    await make(engine)
    port = engine.resolve("one").record.forwards[0].host_port
    await engine.close()
    world.ports.clear()
    again = world.engine()
    said = await reconcile(again)
    machine = again.resolve("one")
    assert machine.state is VmState.RUNNING
    assert world.ports == {port}
    assert any("adopted" in sentence for sentence in said)
    async with asyncio.timeout(30):
        while not machine.ready:
            await asyncio.sleep(0.01)
    machine.vmm.end("crash")
    async with asyncio.timeout(30):
        while machine.state is not VmState.FAILED:
            await asyncio.sleep(0.01)
    await again.close()
    again.context.store.close()


async def test_vms_are_settled_side_by_side_and_one_that_cannot_be_keeps_no_other(
    engine, world, monkeypatch
):
    for name in ("one", "two", "three"):
        await make(engine, name)
    await engine.close()
    world.ports.clear()
    again = world.engine()
    network, together = again.context.network, asyncio.Barrier(3)
    broken = engine.resolve("two").id

    async def set_outward(lease, *, outward):
        async with asyncio.timeout(30):
            await together.wait()
        if lease.vm_id == broken:
            raise RuntimeError("no way")

    monkeypatch.setattr(network, "set_outward", set_outward)
    said = await reconcile(again)
    assert [machine.name for machine in again.machines() if machine.vmm is not None] == ["one", "two", "three"]  # fmt: skip
    assert "VM two: could not be brought in order: no way" in said
    assert sum(": adopted, pid" in sentence for sentence in said) == 2
    assert again.resolve("two").record.last_error.what == "internal error: RuntimeError"
    async with asyncio.timeout(30):
        while not all(machine.ready for machine in again.machines()):
            await asyncio.sleep(0.01)
    await finished(again, again.delete(again.resolve("two")))
    assert len(world.vmms) == 2
    await again.close()
    again.context.store.close()


async def test_few_of_the_guests_that_are_adopted_are_asked_at_a_time_and_all_become_ready(
    engine, world, monkeypatch
):
    names = ["one", "two", "three", "four", "five"]
    for name in names:
        await make(engine, name)
    await engine.close()
    world.ports.clear()
    asked, most, two = [], [], asyncio.Event()

    async def refresh(machine, timeout_s):
        asked.append(machine.name)
        most.append(len(asked))
        if len(asked) == 2:
            two.set()
        await two.wait()  # however long after the first the second comes
        await asyncio.sleep(0.02)
        asked.remove(machine.name)
        machine.services = {"ssh": True}

    monkeypatch.setattr(boot, "refresh_services", refresh)
    again = world.engine()
    await reconcile(again)
    async with asyncio.timeout(30):
        while not all(machine.ready for machine in again.machines()):
            await asyncio.sleep(0.01)
    assert (len(most), max(most)) == (len(names), 2)
    await again.close()
    again.context.store.close()


async def test_a_dead_vm_that_cannot_be_cleared_away_is_shown_failed_and_keeps_no_other(
    engine, world, monkeypatch
):
    for name in ("one", "two"):
        await make(engine, name)
    await engine.close()
    world.ports.clear()
    dead = engine.resolve("one").id
    del world.vmms[engine.resolve("one").paths.runtime]
    again = world.engine()
    detach = again.context.network.detach

    async def refuse(lease):
        if lease.vm_id == dead:
            raise HostLacksError("the TAP is held")
        await detach(lease)

    monkeypatch.setattr(again.context.network, "detach", refuse)
    await reconcile(again)
    states = {machine.name: machine.state for machine in again.machines()}
    assert states == {"one": VmState.FAILED, "two": VmState.RUNNING}
    assert again.resolve("one").record.last_error.what == "the TAP is held"
    monkeypatch.undo()
    started = await finished(again, again.start(again.resolve("one"), None))
    assert started.state is OperationState.SUCCEEDED
    await again.close()
    again.context.store.close()


async def test_a_vm_whose_vmm_died_while_no_daemon_ran_is_found_failed(engine, world):
    await make(engine)
    await engine.close()
    world.vmms.clear()
    again = world.engine()
    await reconcile(again)
    machine = again.resolve("one")
    assert machine.state is VmState.FAILED
    assert "while the daemon was down" in machine.record.last_error.what
    assert world.taps == set()
    await again.close()
    again.context.store.close()


@pytest.mark.parametrize("stage", CREATE_STAGES)
async def test_a_daemon_killed_at_any_stage_of_create_leaves_nothing(engine, world, stage):
    """The in-memory world stands in for kill -9: the engine is dropped without undoing, a new one reconciles."""
    before = world.inventory()
    faults.load(f"vm.create.{stage}.after=hang")
    run = engine.create("one", "debian", SPEC, start=True, ready_s=None)
    async for event, record in run.watch():
        if (
            event is not None
            and event.name == stage
            and len(record.stages) == CREATE_STAGES.index(stage) + 1
        ):
            break
    for _ in range(5):
        await asyncio.sleep(0.01)
    faults.load("")
    world.ports.clear()  # they were the daemon's own
    again = world.engine()
    said = await reconcile(again)
    try:
        (record,) = again.context.board.newest(1)
        if stage == "ready":  # it was complete but for the last word
            assert [machine.state for machine in again.machines()] == [VmState.RUNNING]
            assert record.state is OperationState.SUCCEEDED
            assert {stage.state for stage in record.stages} == {OperationState.SUCCEEDED}
        else:
            assert again.machines() == []
            assert world.inventory() == before
            assert any("was cut short" in sentence for sentence in said)
            assert record.state is OperationState.FAILED
    finally:
        await again.close()
        again.context.store.close()


def in_bridge_mode(world_network, prefix):
    """The network settles leases at other addresses from now on; what it was asked for."""
    asked = []

    async def settle(lease, mode):
        asked.append(str(mode))
        return replace(lease, ip=f"{prefix}.{lease.index}", gateway=f"{prefix}.254"), 1500

    world_network.settle = settle
    return asked


async def test_addresses_are_those_of_the_network_in_which_a_vm_starts(engine, world):
    await make(engine)
    machine = engine.resolve("one")
    before = machine.lease
    await finished(engine, engine.stop(machine, None, force=True))
    asked = in_bridge_mode(engine.context.network, "10.7.7")
    await engine.change(machine, Changes(network=NetworkMode.BRIDGE, name="uno"))
    assert asked == []  # nothing starts: no network is needed
    assert machine.lease == before
    assert (await finished(engine, engine.start(machine, None))).state is OperationState.SUCCEEDED
    assert asked == ["bridge"]
    moved = replace(before, ip=f"10.7.7.{before.index}", gateway="10.7.7.254")
    assert machine.lease == moved
    assert engine.context.store.leases() == [moved]
    assert (world.identities[-1].lease, world.identities[-1].mtu) == (moved, 1500)
    assert machine.record.run.ip == moved.ip
    assert '"10.7.7.254"' in (machine.paths.state / "vm.json").read_text()


async def test_a_network_that_cannot_be_had_fails_the_start_and_leaves_the_vm(engine, world):
    await make(engine)
    machine = engine.resolve("one")
    await finished(engine, engine.stop(machine, None, force=True))

    async def settle(lease, mode):
        raise HostLacksError(
            "network mode bridge needs banger-helper", hint="sudo banger setup helper"
        )

    engine.context.network.settle = settle
    record = await finished(engine, engine.start(machine, None))
    assert record.state is OperationState.FAILED
    assert record.error.hint == "sudo banger setup helper"
    assert machine.state is VmState.STOPPED
    assert engine.context.store.leases() == [machine.lease]


async def test_vms_are_recovered_from_their_directories_when_the_database_is_lost(engine, world):
    await make(engine)
    lease = engine.resolve("one").lease
    await finished(engine, engine.stop(engine.resolve("one"), None, force=True))
    await engine.close()
    engine.context.store.close()
    (world.directory / "banger.db").write_bytes(b"garbage" * 1000)
    again = world.engine()
    assert again.context.store.kept_aside is not None
    await reconcile(again)
    machine = again.resolve("one")
    assert machine.state is VmState.STOPPED
    assert machine.lease == lease
    assert (await finished(again, again.start(machine, None))).state is OperationState.SUCCEEDED
    await again.close()
    again.context.store.close()


async def test_running_vms_are_adopted_though_the_database_was_lost(engine, world, monkeypatch):
    await make(engine, "runs")
    await make(engine, "sleeps")
    await make(engine, "stopped")
    await finished(engine, engine.pause(engine.resolve("sleeps")))
    await finished(engine, engine.stop(engine.resolve("stopped"), None, force=True))
    before = {machine.name: machine.record for machine in engine.machines()}
    await engine.close()
    engine.context.store.close()
    world.ports.clear()
    (world.directory / "banger.db").unlink()
    alive = {vmm.identity for vmm in world.vmms.values()}
    monkeypatch.setattr(proc, "alive", lambda identity: identity in alive)
    again = world.engine()
    said = await reconcile(again)
    states = {machine.name: machine.state for machine in again.machines()}
    assert states == {
        "runs": VmState.RUNNING, "sleeps": VmState.PAUSED, "stopped": VmState.STOPPED,
    }  # fmt: skip
    assert len(world.vmms) == 2
    assert again.resolve("runs").record.forwards == before["runs"].forwards
    assert sum(": adopted, pid" in sentence for sentence in said) == 2
    for name in before:
        deleted = await finished(again, again.delete(again.resolve(name)))
        assert deleted.state is OperationState.SUCCEEDED
    assert world.vmms == {}
    assert again.context.store.ledger() == []
    await again.close()
    again.context.store.close()


async def test_a_watcher_that_comes_late_sees_every_stage(engine):
    record = await make(engine)
    run = engine.context.board.live(record.id)
    seen = [stage.name async for stage, _ in run.watch() if stage is not None]
    assert seen == CREATE_STAGES
