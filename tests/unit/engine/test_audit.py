"""Where record and host differ: found, told, mended, and never mistaken for what an operation is doing."""

import asyncio
import os
import time
from dataclasses import replace

import pytest

from banger.engine import cleaning
from banger.engine.audit import Audit, keep_watch
from banger.engine.events import Residue
from banger.engine.reconcile import reconcile
from banger.host import proc
from banger.model.errors import RefusedError
from banger.model.ids import new_id
from banger.model.process import ProcessIdentity
from banger.model.residue import Stray
from banger.model.spec import ForwardProtocol
from banger.model.state import OperationState, VmState
from tests.unit.engine.test_engine import SPEC, finished, make

STRANGER = "0123456789ab"


@pytest.fixture
def audit(engine):
    return Audit(engine)


async def found(audit):
    return [(each.kind, each.sense, each.remedy.value) for each in await audit.look()]


async def stopped(engine, name="one"):
    await make(engine, name)
    machine = engine.resolve(name)
    await finished(engine, engine.stop(machine, None, force=True))
    return machine


@pytest.mark.parametrize("state", ["nothing", "running", "paused", "stopped", "not started"])
async def test_a_host_on_which_all_is_well_has_no_residue(engine, audit, state):
    if state == "stopped":
        await stopped(engine)
    elif state != "nothing":
        await make(engine, start=state != "not started")
    if state == "paused":
        await finished(engine, engine.pause(engine.resolve("one")))
    assert await audit.look() == []
    assert await audit.fix() == []


def plant_vmm(world, machine):
    world.strange_vmms[ProcessIdentity(2**22 - 1, 1, proc.boot_id())] = machine.id


def plant_sockets(world, machine):
    del world
    machine.paths.runtime.mkdir(parents=True)
    (machine.paths.runtime / "qmp.sock").touch()


OF_A_RUN = {
    "vmm": plant_vmm,
    "device": lambda world, machine: world.devices.add(machine.id),
    "sockets": plant_sockets,
    "attachment": lambda world, machine: world.taps.add(machine.id),
    "leftover": lambda world, machine: world.groups_left.add(machine.id),
    "ledger": lambda _, machine: machine.store.intend(machine.id, "vmm"),
}


@pytest.mark.parametrize("kind", OF_A_RUN)
async def test_what_a_vm_at_rest_has_of_a_run_is_found_and_removed(engine, world, audit, kind):
    machine = await stopped(engine)
    before, ledger = world.inventory(), engine.context.store.ledger()
    OF_A_RUN[kind](world, machine)
    assert await found(audit) == [(kind, "unrecorded", "mend")]
    (done,) = await audit.fix()
    assert done.fixed
    assert done.did == "VM one is stopped, with nothing of a run"
    assert (world.inventory(), engine.context.store.ledger()) == (before, ledger)
    assert machine.state is VmState.STOPPED
    assert await audit.look() == []


def plant_directory(world, vm_id):
    path = world.places.of(vm_id).state
    path.mkdir()
    (path / "console.log").write_text("x")


def plant_group(world, vm_id):
    world.groups_left.add(vm_id)
    world.deserted.add(vm_id)


UNKNOWN = {
    "vmm": lambda world, _: world.strange_vmms.update(
        {ProcessIdentity(2**22 - 1, 1, proc.boot_id()): STRANGER}
    ),
    "device": lambda world, _: world.devices.add(STRANGER),
    "directory": lambda world, _: plant_directory(world, STRANGER),
    "sockets": lambda world, _: world.places.of(STRANGER).runtime.mkdir(parents=True),
    "leftover": lambda world, _: plant_group(world, STRANGER),
    "host-key": lambda world, _: world.known_hosts.update({STRANGER: "gone"}),
    "ledger": lambda _, engine: engine.context.store.intend(STRANGER, "network"),
}


@pytest.mark.parametrize("kind", UNKNOWN)
async def test_what_there_is_of_a_vm_that_nobody_knows_is_found_and_undone(
    engine, world, audit, kind
):
    await make(engine)
    before, ledger = world.inventory(), engine.context.store.ledger()
    UNKNOWN[kind](world, engine)
    assert await found(audit) == [(kind, "unrecorded", "forget")]
    (done,) = await audit.fix()
    assert done.did == f"everything of VM {STRANGER} removed"
    assert (world.inventory(), engine.context.store.ledger()) == (before, ledger)
    assert await audit.look() == []


async def test_all_parts_of_an_unknown_vm_are_undone_at_once(engine, world, audit):
    for plant in UNKNOWN.values():
        plant(world, engine)
    results = await audit.fix()
    assert {each.finding.kind for each in results} == set(UNKNOWN)
    assert all(each.fixed for each in results)
    assert await audit.look() == []


async def test_a_control_group_that_nobody_uses_is_told_by_its_vm(world, audit):
    plant_group(world, STRANGER)
    (finding,) = await audit.look()
    assert finding.what == f"there is a control group of VM {STRANGER}, which nobody knows"
    assert (finding.name, finding.vm_id) == (STRANGER, STRANGER)


async def test_a_control_group_of_another_daemons_vm_is_left_alone(world, audit):
    world.groups_left.add(STRANGER)
    assert await audit.look() == []
    assert await audit.fix() == []
    assert world.groups_left == {STRANGER}


async def test_what_belongs_to_no_vm_is_ended_closed_and_swept(engine, world, audit):
    await make(engine)
    before = world.inventory()
    holder = Stray("the holder", ProcessIdentity(2**22 - 2, 1, proc.boot_id()))
    world.strays.add(holder)
    world.taps.add("tap9")
    await engine.context.relays.add(7070, None)
    await engine.context.relays.add(7071, None, protocol=ForwardProtocol.UDP)
    rest = world.places.state_dir / ".banger-new-x"
    rest.write_text("x")
    young = world.places.state_dir / ".banger-new-y"
    young.write_text("somebody is at it")
    os.utime(rest, (time.time() - 3600,) * 2)
    build = world.directory / "images" / ".build-1"
    build.mkdir(parents=True)
    kinds = [(kind, remedy) for kind, _, remedy in await found(audit)]
    assert kinds == [("network", "end"), ("network", "end"), ("forward", "close"), ("forward", "close"), ("temporary", "sweep"), ("build", "sweep")]  # fmt: skip
    assert all(each.fixed for each in await audit.fix())
    assert young.exists()
    young.unlink()
    assert world.inventory() == before
    assert not build.exists()


async def test_a_vm_whose_vmm_is_gone_unseen_is_mended_to_failed(engine, world, audit):
    await make(engine)
    machine = engine.resolve("one")
    del world.vmms[machine.paths.runtime]  # and its watcher saw nothing
    assert await found(audit) == [("vm", "gone", "mend")]
    (done,) = await audit.fix()
    assert done.did == "VM one is failed, with nothing of a run"
    assert machine.record.last_error.what == "VM one ended, and nobody saw how"
    assert world.taps == world.ports == set()
    assert await audit.look() == []
    record = await finished(engine, engine.start(machine, None))
    assert record.state is OperationState.SUCCEEDED


async def test_mending_a_vm_that_runs_after_all_leaves_it_alone(engine, world):
    await make(engine)
    machine = engine.resolve("one")
    before = world.inventory()
    record = await finished(engine, engine.mend(machine))
    assert [stage.detail for stage in record.stages] == ["it runs"]
    assert (machine.state, world.inventory()) == (VmState.RUNNING, before)


async def test_a_deletion_that_broke_off_is_finished(engine, world, audit):
    before = world.inventory()
    machine = await stopped(engine)
    machine.enter(VmState.DELETING)
    assert await found(audit) == [("vm", "gone", "delete")]
    (done,) = await audit.fix()
    assert done.did == "VM one deleted"
    assert (engine.machines(), world.inventory()) == ([], before)


async def test_missing_files_are_told_with_what_can_be_done_and_nothing_is_touched(
    engine, world, audit
):
    machine = await stopped(engine)
    await make(engine, "two")
    machine.paths.work.unlink()
    engine.context.images.images.clear()
    before = world.inventory()
    results = await audit.fix()
    assert [(r.finding.kind, r.finding.sense, r.fixed) for r in results] == [
        ("disk", "gone", False), ("image", "gone", False), ("image", "gone", False),
    ]  # fmt: skip
    assert results[0].finding.hint == "banger vm delete one"
    assert world.inventory() == before


async def test_a_running_vm_that_lost_its_network_or_its_forward_is_told(engine, world, audit):
    await make(engine)
    world.taps.clear()
    world.ports.clear()
    assert [kind for kind, *_ in await found(audit)] == ["attachment", "forward"]
    assert engine.resolve("one").state is VmState.RUNNING


async def lose(engine, machine):
    """The database forgets a VM, and the daemon with it."""
    await engine._workers.pop(machine.id).close()
    engine.context.store.delete_vm(machine.id)


async def test_a_vm_whose_record_was_lost_comes_back_whole(engine, world, audit):
    machine = await stopped(engine)
    await lose(engine, machine)
    kinds = await found(audit)
    assert {remedy for _, _, remedy in kinds} == {"recover"}
    assert ("directory", "unrecorded", "recover") in kinds
    results = await audit.fix()
    assert results[0].did.startswith("VM one recovered from")
    again = engine.resolve("one")
    assert (again.id, again.state) == (machine.id, VmState.STOPPED)
    assert await audit.look() == []
    record = await finished(engine, engine.start(again, None))
    assert record.state is OperationState.SUCCEEDED


async def test_a_lost_vm_whose_name_was_given_again_is_kept_and_said(engine, world, audit):
    machine = await stopped(engine)
    await lose(engine, machine)
    await make(engine)
    results = await audit.fix()
    assert not results[0].fixed
    assert "'one' is taken" in results[0].error.detail
    assert machine.paths.work.exists()


async def test_work_disks_and_things_of_others_are_kept(engine, world, audit, monkeypatch):
    kept, mixed = world.places.of(new_id()).state, world.places.of(new_id()).state
    for path in (kept, mixed):
        path.mkdir()
    (kept / "work.img").write_text("somebody's home")
    (mixed / "thesis.odt").write_text("somebody's")
    (world.places.state_dir / "vms" / "notes").mkdir()
    results = await audit.fix()
    assert [(r.finding.kind, r.fixed) for r in results] == [("directory", False)] * 2
    assert kept.exists()
    assert mixed.exists()
    monkeypatch.setattr(cleaning, "OLD_S", -1.0)
    (old,) = [each for each in await audit.fix() if each.fixed]
    assert old.finding.name == kept.name
    assert mixed.exists()


async def test_what_cannot_be_mended_is_said_and_keeps_no_other(engine, world, audit):
    UNKNOWN["vmm"](world, engine)
    world.fail_at = {"end-vmm"}
    world.known_hosts["b" * 12] = "gone"
    first, second = await audit.fix()
    assert (first.fixed, first.error.what) == (False, "told to fail at end-vmm")
    assert second.fixed


# Never what an operation is doing


@pytest.mark.parametrize("where", ["agent", "services"])
async def test_what_an_operation_works_on_is_no_residue(engine, world, audit, where):
    world.hang_at = {where}
    run = engine.create("one", "debian", SPEC, start=True, ready_s=None)
    await asyncio.wait_for(world.hanging.wait(), 30)
    assert await audit.look() == []
    assert await audit.fix() == []
    run.cancel()
    await asyncio.wait_for(run.wait(), 30)
    assert await audit.look() == []


@pytest.mark.parametrize("late", [True, False])
async def test_a_vm_that_came_or_went_while_the_host_was_looked_at_is_not_judged(
    engine, audit, monkeypatch, late
):
    network = engine.context.network
    survey, went = network.survey, []

    async def slow(leases):
        before = await survey(leases)
        if not went:
            went.append(True)
            await make(engine, "new")
            await finished(engine, engine.delete(engine.resolve("old")))
            await finished(engine, engine.stop(engine.resolve("two"), None, force=True))
            return before if late else await survey(leases)
        return before

    await make(engine, "old")
    await make(engine, "two")
    monkeypatch.setattr(network, "survey", slow)
    assert await audit.look() == []
    assert went
    assert await audit.look() == []


async def test_mend_is_refused_while_something_else_works_on_the_vm(engine, world):
    await make(engine)
    machine = engine.resolve("one")
    engine.pause(machine)
    with pytest.raises(RefusedError, match="has an operation in hand"):
        engine.mend(machine)
    while engine.busy(machine):
        await asyncio.sleep(0)


# Every minute


async def test_the_watch_mends_vms_and_tells_of_strange_things_once(engine, world, audit):
    await make(engine)
    machine = engine.resolve("one")
    world.known_hosts[STRANGER] = "gone"
    del world.vmms[machine.paths.runtime]
    with engine.context.board.hub.watch() as queue:
        await audit.watch_once()
        assert machine.state is VmState.FAILED
        assert audit.last == {"vm": 1, "host-key": 1}
        await audit.watch_once()
        assert audit.last == {"host-key": 1}
        told = [h.finding.kind for h in iter_queue(queue) if isinstance(h, Residue)]
    assert sorted(told) == ["host-key", "vm"]
    assert STRANGER in world.known_hosts  # reported, and left for people to decide


def iter_queue(queue):
    while not queue.empty():
        yield queue.get_nowait()


async def test_the_watch_goes_on_after_a_look_that_failed_and_0_is_never(audit, monkeypatch):
    looks = []

    async def look(**_):
        looks.append(True)
        raise OSError("odd")

    monkeypatch.setattr(audit, "look", look)
    await keep_watch(audit, 0)
    task = asyncio.create_task(keep_watch(audit, 0.001))
    async with asyncio.timeout(30):
        while len(looks) < 3:
            await asyncio.sleep(0.001)
    task.cancel()
    await asyncio.wait({task})


# After the host was restarted


@pytest.mark.parametrize("autostart", [True, False])
async def test_after_a_reboot_those_that_ran_and_are_to_come_up_are_started_again(
    engine, world, monkeypatch, autostart
):
    await make(engine, "ran", replace(SPEC, autostart=autostart))
    await make(engine, "rested", replace(SPEC, autostart=True))
    await finished(engine, engine.stop(engine.resolve("rested"), None, force=True))
    for things in (world.vmms, world.taps, world.ports, world.devices):
        things.clear()
    monkeypatch.setattr(proc, "boot_id", lambda: "another boot")
    again = world.engine()
    said = await reconcile(again)
    assert "VM ran: stopped, the host was restarted" in said
    ran = again.resolve("ran")
    assert ("VM ran: is started again, as its autostart says" in said) is autostart
    async with asyncio.timeout(30):
        while again.busy(ran):
            await asyncio.sleep(0)
    if autostart:
        assert (ran.state, ran.record.last_error) == (VmState.RUNNING, None)
    else:
        assert ran.state is VmState.STOPPED
        assert ran.record.last_error.what == "the host was restarted while the VM ran"
    assert again.resolve("rested").state is VmState.STOPPED
    assert await Audit(again).look() == []
    await again.close()
    again.context.store.close()
