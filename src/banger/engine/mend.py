"""``vm.mend``: a VM that is not what its record says is brought to a truthful state. Begun by reconcile and by ``banger audit --fix``."""

from __future__ import annotations

import asyncio

from banger.engine.context import Context
from banger.engine.effects import RUN_EFFECTS, undo_effects
from banger.engine.machine import Machine
from banger.engine.operations import OperationRun
from banger.host import proc
from banger.model.record import ErrorRecord
from banger.model.state import AT_REST, VmState


async def mend(context: Context, machine: Machine, run: OperationRun) -> None:
    """Look again, now that nothing else works on this VM. One that runs is left alone; of another's runs nothing is left on the host.

    One that was said to run, and whose VMM is gone, has failed.
    """
    async with run.stage("look") as stage:
        if await runs(context, machine):
            stage.detail = "it runs"
            return
    async with run.stage("host"):
        await undo_effects(context, machine, RUN_EFFECTS)
    if machine.state in AT_REST:
        return
    async with run.stage("record"):
        machine.enter(VmState.FAILED, error=vanished(context, machine))


async def runs(context: Context, machine: Machine) -> bool:
    """Whether the VMM that this daemon has of a VM is there."""
    if machine.vmm is None or machine.state not in {VmState.RUNNING, VmState.PAUSED}:
        return False
    identity, places = machine.vmm.identity, context.places
    if proc.alive(identity):
        return True
    found = await asyncio.to_thread(
        context.vmms.all, places.state_dir / "vms", places.runtime_dir / "vms"
    )
    return identity in found.get(machine.id, ())


def vanished(context: Context, machine: Machine) -> ErrorRecord:
    """What to say of a VM whose VMM is gone, and nobody saw how."""
    tail = context.console_tail(machine.paths)
    return ErrorRecord(
        "vmm-died",
        f"VM {machine.name} ended, and nobody saw how",
        detail=f"last lines of the console:\n{tail}" if tail else "",
        hint=f"banger vm start {machine.name}",
    )
