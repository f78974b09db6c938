"""How a daemon ends: the first signal drains, the second hurries. VMs run on either way.

While it drains no new operation begins, those that run go on to their end, and everybody may still look. What is not over after ``drain_s``,
or at the second signal, is cancelled and undone.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from banger.engine.operations import Board

log = logging.getLogger(__name__)
ANSWERS_S: Final = 2.0
"""For so long after the last operation those who waited for it may ask what came of it."""


class Ending:
    """`asked` is what a signal calls; ``end`` ends the server, once."""

    def __init__(self, board: Board, end: Callable[[], None], drain_s: float) -> None:
        self._board = board
        self._end = end
        self._drain_s = drain_s
        self._draining: asyncio.Task[None] | None = None

    def asked(self) -> None:
        """For the first time: drain. Again: end now."""
        if self._draining is None:
            self._board.close("the daemon is ending")
            self._draining = asyncio.create_task(self._drain(), name="drain")
            return
        if not self._draining.done():
            log.info("told to end again: what runs is cancelled")
            self._draining.cancel()
            self._end()

    async def _drain(self) -> None:
        count = self._board.live_count
        if count:
            log.info("draining: %d operations run, for %g s at most", count, self._drain_s)
        try:
            async with asyncio.timeout(self._drain_s):
                await self._board.idle()
            await asyncio.sleep(ANSWERS_S if count else 0)
        except TimeoutError:
            log.info("not drained: %d operations are cancelled", self._board.live_count)
        self._end()

    async def close(self) -> None:
        """No task is left."""
        if self._draining is not None:
            self._draining.cancel()
            await asyncio.wait({self._draining})
