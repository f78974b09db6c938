"""What happens, told to whoever listens: changes of operations and of VMs, and what a look at the host found. Nothing is kept; a listener that is slow loses the oldest."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from banger.model.record import OperationRecord, StageRecord
from banger.model.residue import Finding
from banger.model.state import VmState

BACKLOG = 1024


@dataclass(frozen=True, slots=True)
class OperationChange:
    """An operation, and the stage of it that changed (None: the operation itself did)."""

    stage: StageRecord | None
    operation: OperationRecord


@dataclass(frozen=True, slots=True)
class VmChange:
    """A VM's new ``state`` (None: it is no more), and what went wrong, if that is why."""

    id: str
    name: str
    state: VmState | None
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class Residue:
    """Record and host differ, since the newest look."""

    finding: Finding


Happening = OperationChange | VmChange | Residue


class Hub:
    """Where everything that happens is told. `tell` never waits and never fails."""

    def __init__(self) -> None:
        self._queues: set[asyncio.Queue[Happening]] = set()
        self._listeners: list[Callable[[Happening], None]] = []

    def listen(self, listener: Callable[[Happening], None]) -> None:
        """Call ``listener``, which must not raise, with all that happens from now on."""
        self._listeners.append(listener)

    def tell(self, happening: Happening) -> None:
        """Let everybody know."""
        for listener in self._listeners:
            listener(happening)
        for queue in self._queues:
            if queue.qsize() >= BACKLOG:
                queue.get_nowait()
            queue.put_nowait(happening)

    @contextmanager
    def watch(self) -> Iterator[asyncio.Queue[Happening]]:
        """A queue of all that happens while it is watched."""
        queue: asyncio.Queue[Happening] = asyncio.Queue()
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)
