"""A worker outlives everything that its operations and its host do to it."""

import asyncio
import sqlite3
from contextlib import contextmanager

import pytest

from banger.model.errors import HostLacksError
from banger.model.spec import VmSpec
from banger.model.state import OperationState, VmState
from banger.store.store import Store
from tests.framework.fake_world import FakeNetwork

SPEC = VmSpec(disk_bytes=1 << 30, work_bytes=1 << 30)


class FillingStore(Store):
    """A store whose disk a test can fill: then every transaction fails as SQLite's do."""

    def __init__(self, path):
        super().__init__(path)
        self.writes_left = None

    def fill(self, after=0):
        self.writes_left = after

    def empty(self):
        self.writes_left = None

    @contextmanager
    def _transaction(self):
        with super()._transaction() as db:
            if self.writes_left is not None:
                self.writes_left -= 1
                if self.writes_left < 0:
                    full = sqlite3.OperationalError("database or disk is full")
                    full.sqlite_errorname = "SQLITE_FULL"
                    raise full
            yield db


@pytest.fixture
def store(world):
    return FillingStore(world.directory / "banger.db")


@pytest.fixture
async def engine(world, store):
    world.open_store = lambda: store
    engine = world.engine()
    yield engine
    store.empty()
    await engine.close()
    store.close()


async def make(engine, name="one"):
    run = engine.create(name, "debian", SPEC, start=True, ready_s=None)
    return await asyncio.wait_for(run.wait(), 10)


async def finished(engine, record):
    run = engine.context.board.live(record.id)
    return await asyncio.wait_for(run.wait(), 10) if run else engine.context.board.get(record.id)


async def becomes(machine, state):
    async with asyncio.timeout(30):
        while machine.state is not state:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("after", range(1, 9))
async def test_a_stop_on_a_full_disk_fails_and_the_vm_can_be_deleted_later(engine, store, after):
    """The disk fills after that many writes: with the operation's first, in the middle of a stage, while it is undone."""
    await make(engine)
    machine = engine.resolve("one")
    store.fill(after)
    record = engine.stop(machine, None, force=True)
    stopped = await finished(engine, record)
    assert stopped.state is OperationState.FAILED
    assert "full" in stopped.error.what
    assert machine.state in {VmState.RUNNING, VmState.FAILED}
    store.empty()
    deleted = await finished(engine, engine.delete(machine))
    assert deleted.state is OperationState.SUCCEEDED, deleted.error
    assert engine.machines() == []


@pytest.mark.parametrize("after", [0, *range(1, 40, 3)])
async def test_a_create_on_a_full_disk_fails_and_leaves_at_most_a_vm_that_can_be_deleted(
    engine, world, store, after
):
    before = world.inventory()
    store.fill(after)
    if after < 2:  # the request's own
        with pytest.raises(HostLacksError, match="full"):
            await make(engine)
    else:
        record = await make(engine)
        assert record.state is OperationState.FAILED
        assert "full" in record.error.what
    store.empty()
    for machine in engine.machines():
        assert machine.state is VmState.FAILED
        assert (await finished(engine, engine.delete(machine))).state is OperationState.SUCCEEDED
    assert engine.machines() == []
    assert world.inventory() == before
    assert (await make(engine)).state is OperationState.SUCCEEDED


async def test_an_outcome_that_could_not_be_stored_is_stored_with_the_next_operation(engine, store):
    await make(engine)
    machine = engine.resolve("one")
    store.fill(1)
    stopped = await finished(engine, engine.stop(machine, None, force=True))
    assert store.operation(stopped.id).state is OperationState.PENDING
    assert engine.context.board.get(stopped.id).state is OperationState.FAILED
    store.empty()
    await finished(engine, engine.delete(machine))
    assert store.operation(stopped.id).state is OperationState.FAILED


@pytest.mark.parametrize(
    "error", [OSError(5, "input/output error"), TimeoutError(), ValueError("odd")]
)
async def test_a_vm_whose_clean_up_after_a_crash_fails_has_failed_and_can_be_deleted(
    engine, monkeypatch, error
):
    await make(engine)
    machine = engine.resolve("one")

    async def broken(self, lease):
        raise error

    monkeypatch.setattr(FakeNetwork, "detach", broken)
    machine.vmm.end("crash")
    await becomes(machine, VmState.FAILED)
    assert machine.record.last_error is not None
    monkeypatch.undo()
    assert (await finished(engine, engine.delete(machine))).state is OperationState.SUCCEEDED


async def test_a_vmm_that_ends_while_the_disk_is_full_leaves_a_failed_vm(engine, store):
    await make(engine)
    machine = engine.resolve("one")
    store.fill()
    machine.vmm.end("guest-shutdown")
    await becomes(machine, VmState.FAILED)
    assert "full" in machine.record.last_error.what
    store.empty()
    assert (await finished(engine, engine.start(machine, None))).state is OperationState.SUCCEEDED
    assert machine.state is VmState.RUNNING
