"""What the engine does about storage: chooses once, opens a root disk for a run, looks after stores, sweeps what is left."""

import asyncio

import msgspec
import pytest

from banger.engine.reconcile import reconcile
from banger.engine.tend import tend_once
from banger.model.machine import StorageChoice, StorageDriver, StoreFill
from banger.model.spec import VmSpec
from banger.model.state import OperationState, VmState
from tests.unit.engine.test_engine import finished, make

SNAPSHOT = StorageChoice(StorageDriver.DM_SNAPSHOT, "told to")


async def settled(machine, state):
    async with asyncio.timeout(30):
        while machine.state is not state:
            await asyncio.sleep(0)


async def test_the_driver_is_recorded_and_the_stage_says_why(engine):
    record = await make(engine)
    (disks,) = [stage for stage in record.stages if stage.name == "disks"]
    assert disks.detail == "qcow2, reflink (told to)"
    machine = engine.resolve("one")
    assert machine.record.storage == "qcow2"
    copy = msgspec.json.decode((machine.paths.state / "vm.json").read_bytes())
    assert copy["record"]["storage"] == "qcow2"


async def test_a_vm_keeps_its_driver_whatever_would_be_chosen_now(engine, world):
    await make(engine)
    machine = engine.resolve("one")
    await finished(engine, engine.stop(machine, None, force=True))
    world.storage_choice = SNAPSHOT
    record = await finished(engine, engine.start(machine, None))
    assert record.state is OperationState.SUCCEEDED, record.error
    assert machine.record.storage == "qcow2"


async def test_a_driver_that_cannot_work_is_told_before_anything_is_made(engine, world):
    class NotHere:
        def __getattr__(self, name):
            return getattr(engine.context.storage, name)

        async def choose(self, *_):
            world.may_fail("choose")

    world.fail_at = {"choose"}
    before = world.inventory()
    other = world.engine(storage=NotHere())
    try:
        record = await make(other)
        assert record.error.what == "told to fail at choose"
        assert [stage.name for stage in record.stages] == ["validate"]
        assert world.inventory() == before
        with pytest.raises(Exception, match="told to fail at choose"):
            await other.plan_create(None, "debian", VmSpec(disk_bytes=1 << 30), start=True)
    finally:
        await other.close()
        other.context.store.close()


@pytest.mark.parametrize("end", ["stop", "delete", "exit"])
async def test_a_root_disk_is_open_while_its_vm_runs(engine, world, end):
    await make(engine)
    machine = engine.resolve("one")
    assert world.devices == {machine.id}
    if end == "exit":
        world.vmms[machine.paths.runtime].end()
        await settled(machine, VmState.FAILED)
    else:
        ask = engine.delete(machine) if end == "delete" else engine.stop(machine, None, force=True)
        await finished(engine, ask)
    assert world.devices == set()


async def test_a_device_that_cannot_be_made_fails_the_start_and_leaves_nothing(engine, world):
    before = world.inventory()
    world.fail_at = {"device"}
    record = await make(engine)
    assert record.error.what == "told to fail at device"
    assert world.inventory() == before


async def test_a_device_whose_vm_is_unknown_goes_at_start_up(engine, world):
    await make(engine)
    await engine.close()
    world.ports.clear()
    world.devices.add("f" * 12)
    again = world.engine()
    said = await reconcile(again)
    assert f"device of {'f' * 12} removed" in said
    assert world.devices == {again.resolve("one").id}
    await again.close()
    again.context.store.close()


async def full(engine, world, trouble):
    world.storage_choice = SNAPSHOT
    await make(engine)
    machine = engine.resolve("one")
    world.fills = {machine.id: StoreFill(machine.id, 100, 200, trouble)}
    return machine


async def test_a_vm_whose_store_cannot_grow_is_paused_and_says_why(engine, world):
    machine = await full(engine, world, "the store cannot grow: the host's disk is full")
    await tend_once(engine)
    assert machine.vmm.paused
    await settled(machine, VmState.PAUSED)
    assert "host's disk is full" in machine.record.last_error.what
    assert machine.record.last_error.hint.endswith("banger vm resume one")
    assert machine.store_trouble


async def test_it_is_paused_again_while_there_is_no_room_and_not_once_there_is(engine, world):
    machine = await full(engine, world, "full")
    await tend_once(engine)
    await settled(machine, VmState.PAUSED)
    await finished(engine, engine.resume(machine))
    await tend_once(engine)
    await settled(machine, VmState.PAUSED)
    world.fills = {machine.id: StoreFill(machine.id, 100, 400)}
    await tend_once(engine)
    assert machine.store_trouble == ""
    await finished(engine, engine.resume(machine))
    await tend_once(engine)
    assert (machine.state, machine.vmm.paused) == (VmState.RUNNING, False)


async def test_a_store_with_room_and_other_drivers_are_left_alone(engine, world):
    machine = await full(engine, world, "")
    await make(engine, "two")
    await tend_once(engine)
    assert {m.state for m in engine.machines()} == {VmState.RUNNING}
    assert machine.record.last_error is None
