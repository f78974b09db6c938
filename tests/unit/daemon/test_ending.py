"""The first signal drains, the second hurries, and VMs run on."""

import asyncio

import pytest

from banger.daemon.ending import Ending
from banger.model.errors import RefusedError
from banger.model.state import OperationState, VmState
from tests.unit.engine.test_engine import SPEC, make


@pytest.fixture
async def ended(engine):
    """An `Ending` with an hour, and the event that it sets."""
    event = asyncio.Event()
    ending = Ending(engine.context.board, event.set, 3600)
    event.ending = ending
    yield event
    await ending.close()


@pytest.fixture
async def engine(api):
    return api.service.engine


async def hanging(engine, world):
    world.hang_at = {"services"}
    run = engine.create("slow", "debian", SPEC, start=True, ready_s=None)
    await asyncio.wait_for(world.hanging.wait(), 30)
    return run


async def test_an_idle_daemon_ends_at_once(ended, api):
    await make(api.service.engine)
    ended.ending.asked()
    await asyncio.wait_for(ended.wait(), 30)
    assert api.service.engine.resolve("one").state is VmState.RUNNING


async def test_what_runs_comes_to_its_end_and_nothing_new_begins_while_looking_is_welcome(
    ended, api, monkeypatch
):
    engine, world = api.service.engine, api.world
    go_on = asyncio.Event()

    async def held(where):
        if where == "services":
            world.hanging.set()
            await go_on.wait()

    monkeypatch.setattr(world, "may_hang", held)
    monkeypatch.setattr("banger.daemon.ending.ANSWERS_S", 0.2)
    run = await hanging(engine, world)
    ended.ending.asked()
    with pytest.raises(RefusedError, match=r"vm\.create of two: the daemon is ending"):
        engine.create("two", "debian", SPEC, start=True, ready_s=None)
    status, problem = await api("POST", "/v1/vms", {"name": "three"})
    assert (status, problem["hint"]) == (409, "try again in a moment")
    assert [vm["name"] for vm in (await api("GET", "/v1/vms"))[1]] == ["slow"]
    assert not ended.is_set()
    go_on.set()
    async for _ in run.watch():
        pass
    assert run.record.state is OperationState.SUCCEEDED
    assert not ended.is_set()  # whoever waited for it may still ask
    await asyncio.wait_for(ended.wait(), 30)
    assert [machine.name for machine in engine.machines()] == ["slow"]


async def test_a_second_signal_waits_for_nothing(ended, api):
    run = await hanging(api.service.engine, api.world)
    ended.ending.asked()
    await asyncio.sleep(0.01)
    assert not ended.is_set()
    ended.ending.asked()
    assert ended.is_set()
    await api.service.engine.close()  # as the daemon does then
    assert run.record.state is OperationState.CANCELLED
    assert api.world.vmms == {}


async def test_draining_has_an_end(api):
    await hanging(api.service.engine, api.world)
    ended = asyncio.Event()
    ending = Ending(api.service.context.board, ended.set, 0.01)
    ending.asked()
    await asyncio.wait_for(ended.wait(), 30)
    ending.asked()  # too late to hurry: it ends already
    await ending.close()
