"""At start-up: one VM's record and what the host has of it, brought together. Nothing here waits for a guest."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import Final

from banger.engine.boot import follow_up, watch_exit
from banger.engine.context import Context
from banger.engine.dial import on_own_network
from banger.engine.effects import RUN_EFFECTS, undo_effects
from banger.engine.engine import Engine
from banger.engine.forwards import reopen_forwards
from banger.engine.machine import Machine
from banger.engine.ports import RunningVmm
from banger.engine.verbs import vmm_status
from banger.host import proc
from banger.model.errors import BangerError
from banger.model.record import ErrorRecord, VmRecord
from banger.model.state import AT_REST, VmState

log = logging.getLogger(__name__)
AT_ONCE: Final = 16  # most of it is waiting for VMMs; what is undone has 30 s a step


def ran_before_reboot(record: VmRecord) -> bool:
    """Whether its VMM went down with the host."""
    return record.run is not None and record.run.process.boot_id != proc.boot_id()


async def settle_all(engine: Engine, machines: Iterable[Machine]) -> list[str]:
    """All of them side by side; what was found and done, in their order. One that cannot be settled keeps no other from it."""
    places = asyncio.Semaphore(AT_ONCE)

    async def settled(machine: Machine) -> list[str]:
        async with places:
            try:
                return await settle(engine, machine)
            except Exception as error:
                log.exception("VM %s: could not be brought in order", machine.id)
                failure = ErrorRecord.of(error)
                if machine.vmm is None:
                    machine.enter(VmState.FAILED, error=failure)
                else:  # it runs, whatever else is missing
                    machine.save(last_error=failure)
                    follow_up(engine.context, machine)
                engine.take(machine)
                return [f"VM {machine.name}: could not be brought in order: {error}"]

    parts = await asyncio.gather(*(settled(machine) for machine in machines))
    return [sentence for part in parts for sentence in part]


async def settle(engine: Engine, machine: Machine) -> list[str]:
    """Adopt the VM if its VMM runs, undo what was cut short, and give it a worker; sentences. It may fail as what is undone may."""
    context = engine.context
    state = machine.state
    if state in {VmState.CREATING, VmState.DELETING}:
        try:
            await undo_effects(context, machine)
        except Exception as error:  # noqa: BLE001  it stays visible, to be deleted again
            machine.enter(VmState.FAILED, error=ErrorRecord.of(error))
            engine.take(machine)
            return [f"VM {machine.name}: {state} was cut short, and undoing it failed: {error}"]
        context.store.delete_vm(machine.id)
        return [f"VM {machine.name}: {state} was cut short; undone"]
    said = []
    if state in {VmState.RUNNING, VmState.PAUSED}:
        if await _adopt(context, machine):
            engine.take(machine)
            return [
                f"VM {machine.name}: adopted, pid {machine.vmm.identity.pid}" if machine.vmm else ""
            ]
        said = await _found_dead(context, machine)
    elif state not in AT_REST or _has_run_effects(context, machine):
        await undo_effects(context, machine, RUN_EFFECTS)
        if state not in AT_REST:
            cut_short = ErrorRecord(
                "failure",
                f"the daemon ended while VM {machine.name} was {state}",
                hint=f"banger vm start {machine.name}",
            )
            machine.enter(VmState.STOPPED, error=cut_short)
            said = [f"VM {machine.name}: was {state}, now stopped"]
    engine.take(machine)
    return said


def _has_run_effects(context: Context, machine: Machine) -> bool:
    rows = context.store.ledger()
    return any(row.vm_id == machine.id and row.effect in RUN_EFFECTS for row in rows)


async def _adopt(context: Context, machine: Machine) -> bool:
    run = machine.record.run
    if run is None:
        return False
    vmm = await context.vmms.named(run.vmm).adopt(run.process, machine.paths)
    if vmm is None:
        return False
    machine.vmm = vmm
    machine.guest = context.guests(machine.paths, vmm.agent)
    watch_exit(machine)
    if machine.lease is not None and on_own_network(run.network):
        context.network.adopted(machine.lease)
        await _set_permissions(context, machine)
    await reopen_forwards(context, machine)
    await _look_at_vmm(machine, vmm)
    follow_up(context, machine)
    return True


async def _set_permissions(context: Context, machine: Machine) -> None:
    """The way outside and to others is as the record has it: the daemon before may have ended between changing it and writing it down."""
    if machine.lease is None:
        return
    try:
        await context.network.set_outward(machine.lease, outward=machine.record.spec.nat)
        await context.network.set_groups(machine.lease, machine.record.spec.groups)
    except (BangerError, OSError) as error:
        log.warning("VM %s: where it may go could not be set: %s", machine.id, error)


async def _look_at_vmm(machine: Machine, vmm: RunningVmm) -> None:
    """Whether it is paused is what the VMM says: the daemon before may have ended between telling it and writing it down."""
    status = await vmm_status(vmm)
    state = {"running": VmState.RUNNING, "paused": VmState.PAUSED}.get(status or "")
    if state is not None and state is not machine.state:
        machine.enter(state)


async def _found_dead(context: Context, machine: Machine) -> list[str]:
    rebooted = ran_before_reboot(machine.record)
    await undo_effects(context, machine, RUN_EFFECTS)
    if rebooted:
        machine.enter(
            VmState.STOPPED,
            error=ErrorRecord(
                "failure",
                "the host was restarted while the VM ran",
                hint=f"banger vm start {machine.name}",
            ),
        )
        return [f"VM {machine.name}: stopped, the host was restarted"]
    tail = context.console_tail(machine.paths)
    error = ErrorRecord(
        "vmm-died",
        f"VM {machine.name} ended while the daemon was down",
        detail=f"last lines of the console:\n{tail}" if tail else "",
        hint=f"banger vm start {machine.name}",
    )
    machine.enter(VmState.FAILED, error=error)
    return [f"VM {machine.name}: its VMM had ended"]
