"""Work that a cancellation does not leave going on behind its caller's back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from typing import ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def in_thread(function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """As `asyncio.to_thread`, but a cancelled caller goes on only when the thread is done.

    For work that makes files: whoever undoes it afterwards finds all that there will be.
    """
    loop = asyncio.get_running_loop()
    return await finish(loop.run_in_executor(None, partial(function, *args, **kwargs)))


class StoppedError(Exception):
    """Ends the work of a thread whose caller was cancelled; nobody else sees it."""


async def stoppable(function: Callable[..., _T], *args: object, **kwargs: object) -> _T:
    """As `in_thread`, for a long ``function`` that takes ``between`` and calls it between its pieces (`banger.host.fs.Between`).

    A cancelled caller goes on after the piece that is being worked on.
    """
    stop = threading.Event()

    def between() -> None:
        if stop.is_set():
            raise StoppedError

    loop = asyncio.get_running_loop()
    work = partial(function, *args, **kwargs, between=between)
    return await finish(loop.run_in_executor(None, work), on_cancel=stop.set)


async def finish(future: asyncio.Future[_T], *, on_cancel: Callable[[], None] | None = None) -> _T:
    """The result of ``future``, which is never cancelled: a cancellation of the caller is raised once it is done.

    ``on_cancel`` is called as soon as the caller is cancelled.
    """
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
            if on_cancel is not None:
                on_cancel()
    if cancelled is not None:
        raise cancelled from future.exception()
    return future.result()
