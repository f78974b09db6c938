"""Work that a cancellation does not leave going on behind its caller's back."""

from __future__ import annotations

import asyncio
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


async def finish(future: asyncio.Future[_T]) -> _T:
    """The result of ``future``, which is never cancelled: a cancellation of the caller is raised once it is done."""
    cancelled: asyncio.CancelledError | None = None
    while not future.done():
        try:
            await asyncio.wait({future})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled from future.exception()
    return future.result()
