"""The fault matrix: every operation, at every trace point of every stage, with every fault. Generated from what operations do.

After each: the state is true, `banger audit` finds nothing else, the next try succeeds, and in the end the host and the ledger are as they
were. An engine that is dropped while a stage hangs stands in for kill -9 of the daemon; tests/fault does that for real.
"""

import asyncio
import contextlib
from collections import Counter

import pytest

from banger.engine.admission import Verb
from banger.engine.audit import Audit
from banger.engine.plans import CREATE, START
from banger.engine.reconcile import reconcile
from banger.host import faults
from banger.model.errors import BangerError, RefusedError
from banger.model.state import OperationState, VmState
from tests.framework.operations import DEEDS, Bench, passed

PASSED = passed()
FAULTS = ("error", "time-out", "cancel", "kill", "vmm", "network")
"""At the point: an error of ours, a deadline of something below, the operation is cancelled, the daemon ends, the VMM dies, the network dies."""
SIZE = 814
"""How many cells the matrix has; SPECIFICATION.md says it too."""


def takes_part(fault, point):
    """Whether there is something for ``fault`` to hit at ``point``."""
    return {"vmm": point.vmm, "network": point.network}.get(fault, True)


MATRIX = [
    pytest.param(deed, point, fault, id=f"{deed.name}-{point.name}-{point.turn}-{fault}")
    for deed in DEEDS
    for point in PASSED[deed.name]
    for fault in FAULTS
    if takes_part(fault, point)
]
AT_REST = {VmState.STOPPED, VmState.FAILED}
UP = {VmState.RUNNING, VmState.PAUSED}
DONE_BY_LAST_WORD = {"vm.create", "vm.start", "vm.restart", "vm.pause", "vm.delete"}


def test_the_matrix_has_its_size_and_leaves_no_verb_stage_or_fault_out():
    assert len(MATRIX) == SIZE
    assert {deed.kind for deed in DEEDS} >= {verb.value for verb in Verb}
    cells = Counter(cell.values[2] for cell in MATRIX)
    assert cells["error"] == cells["time-out"] == cells["cancel"] == cells["kill"] > 100
    assert min(cells["vmm"], cells["network"]) > 30
    for name, steps in (("vm.create", CREATE), ("vm.start", START)):
        wanted = [f"{name}.{step.name}.{where}" for step in steps for where in ("before", "after")]
        assert [point.name for point in PASSED[name]] == wanted


class Fault:
    """Happens once, at its point. ``reached`` is set when it does; a ``kill`` hangs there, so that the daemon can be dropped."""

    def __init__(self, bench, point, kind):
        self.bench, self.point, self.kind = bench, point, kind
        self.seen, self.reached = 0, asyncio.Event()

    async def __call__(self, name):
        if name != self.point.name:
            return
        self.seen += 1
        if self.seen == self.point.turn + 1:
            self.reached.set()
            await getattr(self, self.kind.replace("-", "_"))()

    async def error(self):
        raise BangerError(f"fault injected at {self.point.name}")

    async def time_out(self):
        raise TimeoutError

    async def cancel(self):
        board = self.bench.engine.context.board
        (run,) = [run for run in board._live.values() if not run.record.state.final]
        try:
            run.cancel()
        except RefusedError:
            assert not run.cancellable
        await asyncio.sleep(0)

    async def kill(self):
        await asyncio.Event().wait()

    async def vmm(self):
        for vmm in list(self.bench.world.vmms.values()):
            vmm.end("crash")

    async def network(self):
        self.bench.world.lose_network()


def truthful(world, machine):
    """That the VM's state is what the host shows."""
    if machine.state is VmState.DELETING:
        return  # some of it is there, some not: only another delete is welcome
    running = machine.paths.runtime in world.vmms
    assert machine.state in (UP if running else AT_REST)
    assert (machine.vmm is not None) is running
    if not running:
        assert world.taps == world.ports == world.devices == set()
        return
    if world.taps:
        assert world.outward[machine.id] is machine.record.spec.nat
        assert world.groups[machine.id] == machine.record.spec.groups
    shown = {f.host_port if f.protocol == "tcp" else f"{f.host_port}/udp" for f in machine.relayed}
    assert world.ports == shown
    assert set(machine.relayed) == set(machine.record.forwards)
    assert (machine.state is VmState.PAUSED) is world.vmms[machine.paths.runtime].paused


async def check_all_is_told(bench, deed):
    """That record and host agree, but for what is said of it: a deletion or a mending to be tried again, a VM that lost its network."""
    told = set()
    for machine in bench.engine.machines():
        truthful(bench.world, machine)
        if machine.state is VmState.DELETING:
            told.add(("vm", "gone", "delete"))
        elif machine.vmm is not None and not bench.world.taps:
            told.add(("attachment", "gone", "none"))
    if deed.kind == "vm.mend" and any(
        row.effect == "vmm" and not row.done for row in bench.engine.context.store.ledger()
    ):
        told.add(("ledger", "unrecorded", "mend"))
    if bench.engine.context.images.half_deleted():
        told.add(("build", "unrecorded", "sweep"))
    audit = Audit(bench.engine)
    assert {(f.kind, f.sense, f.remedy.value) for f in await audit.look()} == told
    assert bench.engine.context.board.live_count == 0


async def try_again_and_clean_up(bench, deed, before):
    """The same operation succeeds now, and after that everything can go."""
    for machine in bench.engine.machines():
        if machine.state is VmState.DELETING:
            await bench.prepare("none")
        elif machine.vmm is not None and not bench.world.taps:  # what the audit's hint says
            await bench.ended(bench.engine.restart(machine, None))
    await bench.prepare(deed.welcome)
    record = await deed.do(bench)
    assert record.state is OperationState.SUCCEEDED, record.error
    await bench.prepare("none")
    assert bench.engine.machines() == []
    assert bench.world.inventory() == before
    assert bench.engine.context.images.leftovers() == []
    store = bench.engine.context.store
    assert (store.ledger(), store.leases(), store.vms()) == ([], [], [])


@pytest.mark.parametrize(("deed", "point", "fault"), MATRIX)
async def test_whatever_happens_the_truth_is_told_and_nothing_is_left(
    world, monkeypatch, deed, point, fault
):
    before = world.inventory()
    async with contextlib.AsyncExitStack() as opened:
        bench = Bench(world)
        opened.push_async_callback(bench.close)
        await bench.prepare(deed.welcome)
        happening = Fault(bench, point, fault)
        monkeypatch.setattr(faults, "point", happening)
        task = asyncio.create_task(deed.do(bench))
        opened.push_async_callback(gone, task)
        if fault == "kill":
            await asyncio.wait_for(happening.reached.wait(), 10)
            again = Bench(world)
            opened.push_async_callback(again.close)
            await check_next_daemon(again, deed, point)
        else:
            record = await task
            assert happening.reached.is_set()
            check_outcome(record, point, fault)
            again = bench
        await check_all_is_told(again, deed)
        await try_again_and_clean_up(again, deed, before)


async def gone(task):
    """End the task of a daemon that was dropped."""
    task.cancel()
    await asyncio.wait({task})


def check_outcome(record, point, fault):
    """What the operation says of itself."""
    assert record.state.final
    if fault == "error":
        assert record.state is OperationState.FAILED
        assert record.error.what == f"fault injected at {point.name}"
    elif fault == "time-out":
        assert record.state is OperationState.FAILED
        assert record.error.what == "internal error: TimeoutError"
    elif fault == "cancel":
        assert record.state in {OperationState.CANCELLED, OperationState.SUCCEEDED}


async def check_next_daemon(again, deed, point):
    """The daemon that comes after one that was killed reconciles, and says how the operation ended."""
    again.world.ports.clear()  # they were the other's own
    await reconcile(again.engine)
    await again.engine.context.images.sweep()  # as the daemon does before it serves
    record = again.engine.context.store.operations(limit=1)[0]
    assert record.kind == deed.kind
    done = {f"{name}.{PASSED[name][-1].name.split('.')[2]}.after" for name in DONE_BY_LAST_WORD}
    wanted = OperationState.SUCCEEDED if point.name in done else OperationState.FAILED
    assert record.state is wanted
