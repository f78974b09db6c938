"""The undo stack: newest first, all of them, with deadlines, whatever happens."""

import asyncio

import pytest

from banger.host.undo import UndoStack


class BoomError(Exception):
    pass


async def test_inverses_run_newest_first_when_the_block_fails():
    ran = []

    async def later(name):
        await asyncio.sleep(0)
        ran.append(name)

    async def work():
        async with UndoStack() as undo:
            undo.push("a", lambda: ran.append("a"))
            undo.push("b", lambda: later("b"))
            raise BoomError

    with pytest.raises(BoomError):
        await work()
    assert ran == ["b", "a"]


async def test_a_released_stack_keeps_everything():
    ran = []
    async with UndoStack() as undo:
        undo.push("a", lambda: ran.append("a"))
        undo.release()
    assert ran == []


async def test_leaving_without_release_undoes_even_without_an_error():
    ran = []
    async with UndoStack() as undo:
        undo.push("a", lambda: ran.append("a"))
    assert ran == ["a"]


async def test_one_failing_inverse_does_not_stop_the_others():
    ran = []

    def fail():
        raise BoomError

    undo = UndoStack()
    undo.push("a", lambda: ran.append("a"))
    undo.push("bad", fail)
    undo.push("b", lambda: ran.append("b"))
    await undo.undo()
    assert ran == ["b", "a"]
    assert [(name, type(error)) for name, error in undo.failures] == [("bad", BoomError)]


async def test_an_inverse_that_hangs_is_given_up_at_its_deadline():
    ran = []
    undo = UndoStack()
    undo.push("a", lambda: ran.append("a"))
    undo.push("stuck", lambda: asyncio.Event().wait(), deadline_s=0.05)
    async with asyncio.timeout(30):
        await undo.undo()
    assert ran == ["a"]
    assert [type(error) for _, error in undo.failures] == [TimeoutError]


async def test_a_cancelled_caller_still_undoes_everything():
    ran, begun, go = [], asyncio.Event(), asyncio.Event()

    async def slow():
        begun.set()
        await go.wait()
        ran.append("slow")

    async def work():
        async with UndoStack() as undo:
            undo.push("first", lambda: ran.append("first"))
            undo.push("slow", slow)

    task = asyncio.create_task(work())
    await begun.wait()
    for _ in range(3):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ran == ["slow", "first"]


async def test_undoing_twice_runs_nothing_twice():
    ran = []
    undo = UndoStack()
    undo.push("a", lambda: ran.append("a"))
    await undo.undo()
    await undo.undo()
    assert ran == ["a"]
