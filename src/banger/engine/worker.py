"""One worker a VM: takes its operations one by one, and cleans up when the VMM ends by itself."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass

from banger.engine.admission import Queued, Verb
from banger.engine.context import Context
from banger.engine.machine import Machine
from banger.engine.operations import OperationRun
from banger.engine.verbs import after_exit
from banger.host import bound
from banger.model.record import ErrorRecord
from banger.model.state import OperationState, VmState

log = logging.getLogger(__name__)

Work = Callable[[], Coroutine[object, object, None]]


@dataclass(frozen=True, slots=True)
class Item:
    """An admitted operation."""

    queued: Queued
    run: OperationRun
    work: Work


class Worker:
    """Runs the operations of one VM in order. ``gone`` is called when the VM exists no more; ``reboot`` when its guest rebooted."""

    def __init__(
        self,
        context: Context,
        machine: Machine,
        *,
        gone: Callable[[Machine], None],
        reboot: Callable[[Machine], Awaitable[None]],
    ) -> None:
        self._context = context
        self.machine = machine
        self._gone = gone
        self._reboot = reboot
        self._items: deque[Item] = deque()
        self._works = False
        self._task = asyncio.create_task(self._loop(), name=f"worker {machine.id}")

    @property
    def queue(self) -> list[Queued]:
        """What runs and waits."""
        return [item.queued for item in self._items if not item.run.record.state.final]

    @property
    def busy(self) -> bool:
        """Whether it does something, cleaning up after a run included, or is about to."""
        exited = self.machine.exited
        ended = exited is not None and exited.done()
        return self._works or self.machine.wake.is_set() or bool(self._items) or ended

    def submit(
        self, verb: Verb, run: OperationRun, work: Work, *, cancel_running: bool = False
    ) -> None:
        """Queue an admitted operation; ``cancel_running`` ends those before it that can be cancelled."""
        if cancel_running:
            for item in self._items:
                if item.run.cancellable:
                    item.run.cancel()
        self._items.append(Item(Queued(verb, run.id), run, work))
        self.machine.wake.set()

    async def close(self) -> None:
        """End the worker; what it is doing is cancelled and undone."""
        self._task.cancel()
        await asyncio.wait({self._task})

    async def _loop(self) -> None:
        machine = self.machine
        bound.VM.set(machine.id)
        while True:
            self._works = False
            await machine.wake.wait()
            self._works = True
            machine.wake.clear()
            while self._items:
                await self._do(self._items[0])
                self._items.popleft()
                if machine.gone:
                    self._refuse_rest()
                    self._gone(machine)
                    return
            await self._look_after_exit()

    async def _do(self, item: Item) -> None:
        """Run ``item``; a VM that it leaves half-way between two states has failed, and the worker goes on."""
        machine = self.machine
        try:
            await item.run.run(item.work)
        except Exception as error:
            log.exception("VM %s: %s broke off", machine.id, item.queued.verb)
            item.run.finish(OperationState.FAILED, ErrorRecord.of(error))
        if machine.half_way and not machine.gone:
            error_record = item.run.record.error or ErrorRecord(
                "failure", "it broke off", hint="banger daemon logs"
            )
            machine.fail(error_record.to_error())

    def _refuse_rest(self) -> None:
        """The VM is gone: a waiting delete has what it wants, nothing else can be done any more."""
        for item in self._items:
            if item.queued.verb is Verb.DELETE:
                item.run.finish(OperationState.SUCCEEDED)
            else:
                error = ErrorRecord(
                    "not-found", f"VM {self.machine.name} is gone", hint="banger vm list"
                )
                item.run.finish(OperationState.FAILED, error)
        self._items.clear()

    async def _look_after_exit(self) -> None:
        machine = self.machine
        if machine.state not in {VmState.RUNNING, VmState.PAUSED}:
            return
        try:
            if await after_exit(self._context, machine):
                await self._reboot(machine)
        except Exception as error:
            log.exception("VM %s: cleaning up after its VMM failed", machine.id)
            machine.fail(error)
