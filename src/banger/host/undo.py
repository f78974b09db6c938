"""Undo: whoever makes a host object registers its inverse in the next statement.

::

    async with UndoStack() as undo:
        make_a();  undo.push("remove a", remove_a)
        make_b();  undo.push("remove b", remove_b)
        undo.release()          # everything is there: keep it

Leaving the block without ``release`` runs every inverse, newest first, each with a deadline. Every inverse runs even if an
earlier one failed; failures are logged and kept in ``failures``. Inverses are idempotent.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Self

from banger.host.threads import finish

log = logging.getLogger(__name__)

Inverse = Callable[[], Awaitable[object] | object]
DEFAULT_DEADLINE_S = 15.0


class UndoStack:
    """Inverses of effects, run newest first unless released."""

    def __init__(self) -> None:
        self._inverses: list[tuple[str, Inverse, float]] = []
        self.failures: list[tuple[str, BaseException]] = []

    def push(
        self, describe: str, inverse: Inverse, *, deadline_s: float = DEFAULT_DEADLINE_S
    ) -> None:
        """Register ``inverse``; ``describe`` says in the imperative what it does."""
        self._inverses.append((describe, inverse, deadline_s))

    def release(self) -> None:
        """The whole is complete: forget the inverses."""
        self._inverses.clear()

    async def undo(self) -> None:
        """Run and forget all inverses, newest first. A cancellation of the caller does not stop them half-way."""
        if self._inverses:
            await finish(asyncio.ensure_future(self._run_all()))

    async def _run_all(self) -> None:
        while self._inverses:
            describe, inverse, deadline_s = self._inverses.pop()
            try:
                async with asyncio.timeout(deadline_s):
                    result = inverse()
                    if inspect.isawaitable(result):
                        await result
            except Exception as error:  # noqa: BLE001  every inverse runs; what failed is kept and logged
                log.warning("undo failed: %s: %s", describe, error)
                self.failures.append((describe, error))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.undo()
