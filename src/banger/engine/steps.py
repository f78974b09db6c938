"""A step: one stage of an operation, what it does to the host, and how the executor runs a list of them.

The executor writes the ledger around every step (intended before, settled after) and registers the inverses of its effects before
the step begins, since inverses are idempotent and a step can fail half-way.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from banger.engine.context import Context
from banger.engine.effects import undo_effect
from banger.engine.machine import Machine
from banger.engine.operations import OperationRun, StageHandle
from banger.host.undo import UndoStack
from banger.model.clock import Deadline
from banger.model.state import WaitFor


def _silent(detail: str) -> None:
    del detail


@dataclass(slots=True)
class Job:
    """What one operation was asked: how long the guest may take (to become ready, to shut down), where it is in that time, and how
    far it is waited for. ``say`` tells who watches of the step that runs.
    """

    ready_s: float
    wait: WaitFor = WaitFor.SERVICES
    say: Callable[[str], None] = _silent
    deadline: Deadline = field(init=False)

    def __post_init__(self) -> None:
        self.deadline = Deadline.after(self.ready_s)


Action = Callable[[Context, Machine, Job], Awaitable[str]]
Admission = Callable[[StageHandle], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Step:
    """Stage ``name``: ``do`` makes ``effects`` (names of `banger.engine.effects`) and returns a few words of detail.

    ``describe`` says what it will do, with ``{image}`` and the other words of `banger.engine.plans.plan` for what was asked.
    """

    name: str
    describe: str
    do: Action
    effects: tuple[str, ...] = ()


async def perform(
    context: Context,
    machine: Machine,
    run: OperationRun,
    steps: Sequence[Step],
    undo: UndoStack,
    job: Job,
    *,
    admission: Admission | None = None,
) -> None:
    """Do ``steps`` in order as stages of ``run``; what they made is on ``undo`` for the caller to keep or take back.

    ``admission`` is awaited in the first stage, before its effects; what it says is part of that stage's detail.
    """
    for step in steps:
        async with run.stage(step.name) as stage:
            waited = "" if admission is None else await admission(stage)
            admission = None
            for effect in step.effects:
                context.store.intend(machine.id, effect)
                undo.push(
                    f"undo {effect}",
                    functools.partial(undo_effect, context, machine, effect),
                    deadline_s=30,
                )
            job.say = stage.say
            said = await step.do(context, machine, job)
            stage.detail = ", ".join(filter(None, (said, waited)))
            for effect in step.effects:
                context.store.settle(machine.id, effect)
