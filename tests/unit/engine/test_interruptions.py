"""Every operation, broken off before and after every stage: by an error, and by the daemon's sudden end.

An engine that is dropped while a stage hangs stands in for kill -9; the next one reconciles. tests/vm does it for real.
"""

import asyncio
import contextlib
import itertools
from dataclasses import replace

import pytest

from banger.engine.adjust import Changes
from banger.engine.image_work import ImageWork
from banger.engine.reconcile import reconcile
from banger.host import faults
from banger.model.errors import BangerError
from banger.model.spec import Forward, ForwardProtocol
from banger.model.state import OperationState, VmState
from tests.unit.engine.test_engine import SPEC, finished, make

CHANGES = Changes(name="new", work_bytes=2 << 30)
ADJUSTMENT = Changes(
    nat=False,
    add=(Forward(8080, 80), Forward(0, 53, ForwardProtocol.UDP)),
    remove=((ForwardProtocol.TCP, 9090),),
)
STAGES = {
    "vm.start": ["validate", "identity", "network", "vmm", "boot", "agent", "services", "ready"],
    "vm.stop": ["shutdown", "vmm"],
    "vm.restart": ["shutdown", "vmm", "validate", "identity", "network", "boot", "agent", "services", "ready"],
    "vm.delete": ["vmm", "network", "disks", "forget"],
    "vm.set": ["validate", "disks", "record", "identity"],
    "vm.adjust": ["validate", "nat", "forwards", "record"],
    "vm.pause": ["vmm"],
    "vm.resume": ["vmm", "clock"],
    "image.build": ["resolve", "packages", "rootfs"],
}  # fmt: skip
VM_POINTS = [
    f"{kind}.{stage}.{where}"
    for kind, stages in STAGES.items()
    if kind.startswith("vm.")
    for stage, where in itertools.product(stages, ("before", "after"))
]
DONE = {  # all but the last word was written down
    f"{point}.after"
    for point in ("vm.start.ready", "vm.restart.ready", "vm.pause.vmm", "vm.delete.forget")
}
AT_REST = {VmState.STOPPED, VmState.FAILED}
UP = {VmState.RUNNING, VmState.PAUSED}


@pytest.fixture(autouse=True)
def no_faults_are_left():
    yield
    faults.load("")


async def prepared(engine, kind):
    """The VM ``one`` in the state in which ``kind`` is welcome."""
    await make(engine, spec=replace(SPEC, forwards=(Forward(9090, 90),)))
    machine = engine.resolve("one")
    if kind in {"vm.start", "vm.set"}:
        await finished(engine, engine.stop(machine, None, force=True))
    if kind == "vm.resume":
        await finished(engine, engine.pause(machine))
    return machine


def begin(engine, kind, machine):
    verbs = {
        "vm.start": lambda: engine.start(machine, None),
        "vm.stop": lambda: engine.stop(machine, None, force=False),
        "vm.restart": lambda: engine.restart(machine, None),
        "vm.delete": lambda: engine.delete(machine),
        "vm.pause": lambda: engine.pause(machine),
        "vm.resume": lambda: engine.resume(machine),
    }
    return verbs[kind]()


async def outcome(engine, kind, machine):
    """Do ``kind`` to its end; the operation's record."""
    changes = {"vm.set": CHANGES, "vm.adjust": ADJUSTMENT}.get(kind)
    if changes is None:
        return await finished(engine, begin(engine, kind, machine))
    with contextlib.suppress(BangerError):  # it is in the record too
        await engine.change(machine, changes)
    return engine.context.board.newest(1)[0]


@pytest.mark.parametrize("kind", [kind for kind in STAGES if kind.startswith("vm.")])
async def test_the_stages_are_those_that_are_broken_off_below(engine, kind):
    record = await outcome(engine, kind, await prepared(engine, kind))
    assert record.state is OperationState.SUCCEEDED
    assert list(dict.fromkeys(stage.name for stage in record.stages)) == STAGES[kind]


def truthful(world, machine):
    """That the VM's state is what the host shows."""
    if machine.state is VmState.DELETING:
        return  # some of it is there, some not: only another delete is welcome
    running = machine.paths.runtime in world.vmms
    if running:
        assert world.outward[machine.id] is machine.record.spec.nat
        ports = {
            f.host_port if f.protocol == "tcp" else f"{f.host_port}/udp" for f in machine.relayed
        }
        assert world.ports == ports
        assert set(machine.relayed) == set(machine.record.forwards)
    assert machine.state in (UP if running else AT_REST)
    assert (machine.vmm is not None) is running
    if running:
        paused = world.vmms[machine.paths.runtime].paused
        assert (machine.state is VmState.PAUSED) is paused
    else:
        assert world.taps == set()
        assert world.ports == set()


@pytest.mark.parametrize("point", VM_POINTS)
async def test_an_error_at_any_trace_point_leaves_a_truthful_state_and_a_vm_that_can_be_deleted(
    engine, world, point
):
    before = world.inventory()
    kind = point.rsplit(".", 2)[0]
    machine = await prepared(engine, kind)
    faults.load(f"{point}=error")
    record = await outcome(engine, kind, machine)
    faults.load("")
    assert record.state is OperationState.FAILED
    assert record.error.what == f"fault injected at {point}"
    if not machine.gone:
        truthful(world, machine)
        assert (await finished(engine, engine.delete(machine))).state is OperationState.SUCCEEDED
    assert engine.machines() == []
    assert world.inventory() == before
    assert engine.context.store.ledger() == []


@pytest.mark.parametrize("point", VM_POINTS)
async def test_a_daemon_that_ends_at_any_trace_point_is_followed_by_one_that_tells_the_truth(
    engine, world, point
):
    before = world.inventory()
    kind = point.rsplit(".", 2)[0]
    machine = await prepared(engine, kind)
    reached = asyncio.Event()

    async def hang(name):
        if name == point:
            reached.set()
            await asyncio.Event().wait()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(faults, "point", hang)
        task = asyncio.create_task(outcome(engine, kind, machine))
        await asyncio.wait_for(reached.wait(), 10)
        world.ports.clear()  # they were the daemon's own
        again = world.engine()
        await reconcile(again)
        record = again.context.store.operations(limit=1)[0]
        assert record.kind == kind
        assert record.state is (
            OperationState.SUCCEEDED if point in DONE else OperationState.FAILED
        )
        for survivor in again.machines():
            truthful(world, survivor)
            deleted = await finished(again, again.delete(survivor))
            assert deleted.state is OperationState.SUCCEEDED, deleted.error
        assert again.machines() == []
        assert {**world.inventory(), "ports": set()} == before
        assert again.context.store.ledger() == []
        await again.close()
        again.context.store.close()
        task.cancel()


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("stage", STAGES["image.build"])
async def test_a_build_can_be_broken_off_at_any_stage(engine, stage, where):
    work = ImageWork(engine)
    faults.load(f"image.build.{stage}.{where}=error")
    record = await asyncio.wait_for(work.build("debian", name=None, force=False).wait(), 10)
    assert record.error.what == f"fault injected at image.build.{stage}.{where}"
    assert [s.state for s in record.stages if s.name == stage] == [OperationState.FAILED]
    faults.load("")
    record = await asyncio.wait_for(work.build("debian", name=None, force=False).wait(), 10)
    assert record.state is OperationState.SUCCEEDED
    assert [s.name for s in record.stages] == STAGES["image.build"]
    await work.close()
