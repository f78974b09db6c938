"""What targets share: a claim that does not hold, a stream that somebody hostile has filled, one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

_TRY_S = 5.0


class BrokenPromiseError(Exception):
    """What a target promises does not hold; the text says what."""


def require(holds: bool, what: str) -> None:  # noqa: FBT001  a claim
    """BrokenPromiseError unless it ``holds``."""
    if not holds:
        raise BrokenPromiseError(what)


class Filled:
    """A byte stream in which ``data`` lies, and then its end; what is written is counted."""

    def __init__(self, data: bytes, piece: int = 65536) -> None:
        self._left, self._piece = data, piece
        self.why = ""
        self.written = 0

    async def read(self, limit: int = 65536) -> bytes:
        """Some bytes, empty at the end."""
        size = min(limit, self._piece)
        data, self._left = self._left[:size], self._left[size:]
        return data

    async def write(self, data: bytes) -> None:
        """Count."""
        self.written += len(data)

    async def close(self) -> None:
        """Nothing."""


class Sink:
    """An `asyncio.StreamWriter` that leads nowhere."""

    def __init__(self) -> None:
        self.written = 0

    def write(self, data: bytes) -> None:
        """Count."""
        self.written += len(data)

    async def drain(self) -> None:
        """There is always room."""

    def close(self) -> None:
        """Nothing."""

    async def wait_closed(self) -> None:
        """Nothing."""


_LOOP: list[asyncio.AbstractEventLoop] = []


def run(work: Coroutine[Any, Any, None]) -> None:
    """Run ``work`` to its end in the one loop of this process; what takes longer than a moment is a finding (TimeoutError)."""
    if not _LOOP:
        _LOOP.append(asyncio.new_event_loop())
    _LOOP[0].run_until_complete(asyncio.wait_for(work, _TRY_S))


def close_loop() -> None:
    """Let go of the loop; idempotent."""
    while _LOOP:
        _LOOP.pop().close()
