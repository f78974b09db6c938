"""A cancelled caller goes on when its thread is done, and not before."""

import asyncio
import threading

import pytest

from banger.host.threads import StoppedError, in_thread, stoppable


class Slow:
    """A function that begins, and ends when it may."""

    def __init__(self, error=None):
        self.begun, self.may_end, self.ended = (threading.Event() for _ in range(3))
        self.error = error

    def __call__(self, *args, **kwargs):
        self.begun.set()
        assert self.may_end.wait(10)
        self.ended.set()
        if self.error is not None:
            raise self.error
        return args, kwargs

    async def started(self, *args, **kwargs):
        task = asyncio.create_task(in_thread(self, *args, **kwargs))
        assert await asyncio.to_thread(self.begun.wait, 10)
        return task


async def test_result_and_error_are_the_functions():
    slow = Slow()
    task = await slow.started(1, b=2)
    slow.may_end.set()
    assert await task == ((1,), {"b": 2})
    slow.error = ValueError("no")
    with pytest.raises(ValueError, match="no"):
        await in_thread(slow)


@pytest.mark.parametrize("error", [None, ValueError("no")])
@pytest.mark.parametrize("cancellations", [1, 3])
async def test_a_cancelled_caller_waits_for_the_thread(error, cancellations):
    slow = Slow(error)
    task = await slow.started()
    for _ in range(cancellations):
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
    slow.may_end.set()
    with pytest.raises(asyncio.CancelledError) as raised:
        await task
    assert slow.ended.is_set()
    assert raised.value.__cause__ is error


class Pieces:
    """A function that works piece by piece until it is told to stop, or `done` is set."""

    def __init__(self):
        self.begun, self.done, self.error = threading.Event(), threading.Event(), None

    def __call__(self, result, *, between):
        while not self.done.wait(0.005):
            self.begun.set()
            try:
                between()
            except StoppedError as error:
                self.error = error
                raise
        return result


async def test_a_cancelled_caller_stops_the_thread_at_its_next_piece():
    pieces = Pieces()
    task = asyncio.create_task(stoppable(pieces, 1))
    assert await asyncio.to_thread(pieces.begun.wait, 10)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 30)
    assert pieces.error is not None


async def test_a_thread_that_is_not_stopped_gives_its_result():
    pieces = Pieces()
    pieces.done.set()
    assert await stoppable(pieces, 7) == 7
