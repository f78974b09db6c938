"""Operations: begun with a POST, followed by anyone, finished whether or not somebody watches.

`OperationRun` is a live one: it records its stages in the store as they happen and tells its watchers. `Board` knows all of
them, live and past.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import replace
from typing import Final

from banger.engine.events import Hub, OperationChange
from banger.engine.ports import Store
from banger.host import bound, faults
from banger.model import clock
from banger.model.errors import (
    BangerError,
    CancelledOperationError,
    NotFoundError,
    RefusedError,
)
from banger.model.ids import new_id
from banger.model.record import ErrorRecord, OperationRecord, StageRecord
from banger.model.state import OperationState, VmState

log = logging.getLogger(__name__)

Event = tuple[StageRecord | None, OperationRecord]
WATCH_BACKLOG = 256


class StageHandle:
    """What a running stage may say about itself: ``detail`` at its end, `say` at once."""

    def __init__(self, show: Callable[[str], None]) -> None:
        self.detail = ""
        self._show = show

    def say(self, detail: str) -> None:
        """Set ``detail`` and tell watchers now."""
        self.detail = detail
        self._show(detail)


class OperationRun:
    """One live operation. Its worker calls `begin`, `stage` and `finish`; anybody may `watch`, `wait` and `cancel`."""

    def __init__(
        self, store: Store, record: OperationRecord, hub: Hub, *, cancellable: bool
    ) -> None:
        self._store = store
        self._hub = hub
        self.record = record
        self.cancellable = cancellable
        self._started_ms = clock.monotonic_ms()
        self._watchers: set[asyncio.Queue[Event]] = set()
        self._done = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._unsaved = False
        store.insert_operation(record)

    @property
    def id(self) -> str:
        """The operation's id."""
        return self.record.id

    async def run(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        """Run ``work()`` (a coroutine function) as a task of its own that `cancel` can end, then record the outcome."""
        if self.record.state.final:
            return
        try:
            self._change(replace(self.record, state=OperationState.RUNNING))
            self._task = asyncio.create_task(self._bound(work))
            await asyncio.shield(self._task)
            self.finish(OperationState.SUCCEEDED)
        except asyncio.CancelledError:
            if self._task is not None and not self._task.cancelled():
                # the daemon ends: let the operation undo what it made
                self._task.cancel()
                await asyncio.wait({self._task})
                self._finish_cancelled()
                raise
            self._finish_cancelled()
        except Exception as error:
            record = ErrorRecord.of(error)
            if record.what.startswith("internal error"):
                log.exception("operation %s (%s) failed", self.record.kind, self.id)
            self.finish(OperationState.FAILED, record)

    async def _bound(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        bound.OPERATION.set(self.id)
        await work()

    def _finish_cancelled(self) -> None:
        self.finish(
            OperationState.CANCELLED,
            ErrorRecord.of(CancelledOperationError(f"{self.record.kind} was cancelled")),
        )

    @asynccontextmanager
    async def stage(self, name: str) -> AsyncIterator[StageHandle]:
        """Record the block as stage ``name``; its outcome is the block's. Trace points: ``<kind>.<name>.before`` and ``.after``."""
        seq = len(self.record.stages)
        started_ms = clock.monotonic_ms()
        stage = StageRecord(name, OperationState.RUNNING, clock.now())
        self._put(seq, stage)
        handle = StageHandle(lambda detail: self._show(seq, replace(stage, detail=detail)))

        def close(state: OperationState) -> None:
            duration_ms = round(clock.monotonic_ms() - started_ms, 3)
            self._put(
                seq, replace(stage, state=state, duration_ms=duration_ms, detail=handle.detail)
            )

        try:
            await faults.point(f"{self.record.kind}.{name}.before")
            yield handle
            await faults.point(f"{self.record.kind}.{name}.after")
        except asyncio.CancelledError:
            close(OperationState.CANCELLED)
            raise
        except BaseException:
            close(OperationState.FAILED)
            raise
        close(OperationState.SUCCEEDED)

    def finish(self, state: OperationState, error: ErrorRecord | None = None) -> None:
        """Record the outcome; the first one counts. A store that cannot be written is tried again by `settled`."""
        if self.record.state.final:
            return
        duration_ms = round(clock.monotonic_ms() - self._started_ms, 3)
        self.record = replace(self.record, state=state, error=error, duration_ms=duration_ms)
        self._unsaved = True
        self.settled()
        self._tell(None)
        self._done.set()

    def settled(self) -> bool:
        """Whether it is over and the store knows: then nobody needs this object any more."""
        if self._unsaved:
            try:
                self._store.update_operation(self.record)
                self._unsaved = False
            except BangerError as error:
                log.warning("outcome of operation %s is not stored: %s", self.id, error)
        return self.record.state.final and not self._unsaved

    def retarget(self, target: str, target_name: str) -> None:
        """Name what the operation works on, once it is known (an image gets its id at the end of its build)."""
        self._change(replace(self.record, target=target, target_name=target_name))

    def cancel(self) -> None:
        """Ask it to end; it undoes what it has made. RefusedError for one that cannot be cancelled."""
        if self.record.state.final:
            return
        if not self.cancellable:
            raise RefusedError(
                f"operation {self.id} ({self.record.kind}) cannot be cancelled",
                hint=f"banger op wait {self.id}",
            )
        if self._task is None:
            self._finish_cancelled()
        else:
            self._task.cancel()

    async def wait(self) -> OperationRecord:
        """Return when it is over."""
        await self._done.wait()
        return self.record

    async def watch(self) -> AsyncIterator[Event]:
        """Every change from now on, beginning with the stages so far; ends with the operation.

        A watcher that falls `WATCH_BACKLOG` events behind loses the oldest, never the last.
        """
        queue: asyncio.Queue[Event] = asyncio.Queue()
        self._watchers.add(queue)
        try:
            for stage in self.record.stages:
                yield stage, self.record
            while not self.record.state.final or not queue.empty():
                stage_or_none, record = await queue.get()
                yield stage_or_none, record
                if record.state.final:
                    return
            yield None, self.record
        finally:
            self._watchers.discard(queue)

    def _put(self, seq: int, stage: StageRecord) -> None:
        self._keep(seq, stage)
        self._store.put_stage(self.id, seq, stage)
        self._tell(stage)

    def _show(self, seq: int, stage: StageRecord) -> None:
        """As `_put`, for what need not be stored: it will be over soon."""
        self._keep(seq, stage)
        self._tell(stage)

    def _keep(self, seq: int, stage: StageRecord) -> None:
        stages = (*self.record.stages[:seq], stage, *self.record.stages[seq + 1 :])
        self.record = replace(self.record, stages=stages)

    def _change(self, record: OperationRecord) -> None:
        self.record = record
        self._store.update_operation(record)
        self._tell(None)

    def _tell(self, stage: StageRecord | None) -> None:
        self._hub.tell(OperationChange(stage, self.record))
        for queue in self._watchers:
            if queue.qsize() >= WATCH_BACKLOG:
                queue.get_nowait()
            queue.put_nowait((stage, self.record))


_LAST_WORDS: Final = {
    "vm.create": ("ready", VmState.RUNNING),
    "vm.start": ("ready", VmState.RUNNING),
    "vm.restart": ("ready", VmState.RUNNING),
    "vm.stop": ("vmm", VmState.STOPPED),
    "vm.pause": ("vmm", VmState.PAUSED),
    "vm.delete": ("forget", None),
}
"""The last stage of an operation, and the VM's state that is stored when what it does has been done (None: the VM is gone)."""


def was_done(record: OperationRecord, state: VmState | None) -> bool:
    """Whether an unfinished operation had brought its VM to where it should, as the VM's stored ``state`` shows."""
    if record.kind not in _LAST_WORDS or not record.stages:
        return False
    stage, wanted = _LAST_WORDS[record.kind]
    return record.stages[-1].name == stage and state is wanted


class Board:
    """All operations: live ones in memory, past ones in the store. ``hub`` is told of every change, of VMs too."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.hub = Hub()
        self._live: dict[str, OperationRun] = {}
        self._closed = ""

    def close(self, why: str) -> None:
        """Begin nothing any more: ``why`` is what is said then."""
        self._closed = why

    async def idle(self) -> None:
        """Return when no operation runs."""
        while live := [run for run in self._live.values() if not run.record.state.final]:
            await live[0].wait()

    def begin(
        self, kind: str, target: str, target_name: str, *, cancellable: bool = False
    ) -> OperationRun:
        """A new pending operation; RefusedError after `close`."""
        if self._closed:
            raise RefusedError(
                f"{kind} of {target_name}: {self._closed}", hint="try again in a moment"
            )
        record = OperationRecord(
            new_id(), kind, target, target_name, OperationState.PENDING, clock.now()
        )
        run = OperationRun(self._store, record, self.hub, cancellable=cancellable)
        self._live = {key: value for key, value in self._live.items() if not value.settled()}
        self._live[run.id] = run
        return run

    def live(self, operation_id: str) -> OperationRun | None:
        """The live operation of this id or unique prefix, if it is live."""
        if operation_id in self._live:
            return self._live[operation_id]
        found = [
            run for key, run in self._live.items() if operation_id and key.startswith(operation_id)
        ]
        return found[0] if len(found) == 1 else None

    @property
    def live_count(self) -> int:
        """How many are not over."""
        return sum(not run.record.state.final for run in self._live.values())

    def get(self, operation_id: str) -> OperationRecord:
        """The operation of this id or unique prefix; NotFoundError."""
        run = self.live(operation_id)
        record = run.record if run else self._store.operation(operation_id)
        if record is None:
            raise NotFoundError(f"no operation {operation_id!r}", hint="banger op list")
        return record

    def newest(self, limit: int = 100) -> list[OperationRecord]:
        """The newest operations, newest first."""
        live = {key: run.record for key, run in self._live.items()}
        return [live.get(record.id, record) for record in self._store.operations(limit=limit)]

    def close_unfinished(self) -> list[OperationRecord]:
        """Give what an ended daemon left running its outcome: it succeeded if only the last word was missing, else it failed.

        Returns those that failed.
        """
        states = {vm.id: vm.state for vm in self._store.vms()}
        left = []
        for record in self._store.unfinished_operations():
            done = was_done(record, states.get(record.target))
            outcome = OperationState.SUCCEEDED if done else OperationState.FAILED
            error = ErrorRecord(
                "failure",
                f"the daemon ended during {record.kind}",
                hint="try again; see: banger daemon logs",
            )
            for seq, stage in enumerate(record.stages):
                if not stage.state.final:
                    self._store.put_stage(record.id, seq, replace(stage, state=outcome))
            self._store.update_operation(
                replace(record, state=outcome, error=None if done else error)
            )
            if not done:
                left.append(record)
        return left
