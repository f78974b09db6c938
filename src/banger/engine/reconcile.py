"""At start-up: bring record and host together. What an earlier daemon began is finished or undone; what it left running is adopted.

Nothing here waits for a guest: a VM whose agent does not answer is still running, only not ready.
"""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import msgspec

from banger.engine.boot import refresh_services, watch_exit
from banger.engine.context import Context
from banger.engine.dial import HAS_ADDRESS
from banger.engine.effects import EFFECTS, RUN_EFFECTS, undo_effects
from banger.engine.engine import Engine
from banger.engine.machine import Machine
from banger.engine.ports import RunningVmm
from banger.engine.stages import open_forwards
from banger.engine.verbs import vmm_status
from banger.host import proc
from banger.model.errors import BangerError
from banger.model.ids import is_id
from banger.model.lease import Lease
from banger.model.record import ErrorRecord, VmRecord
from banger.model.spec import VmSpec
from banger.model.state import AT_REST, VmState

log = logging.getLogger(__name__)


class _Copy(msgspec.Struct):
    record: VmRecord
    lease: Lease | None


async def reconcile(engine: Engine) -> list[str]:
    """Run once before the first request; returns sentences about what was found and done."""
    context = engine.context
    said = [
        f"operation {op.kind} on {op.target_name} was cut short"
        for op in context.board.close_unfinished()
    ]
    said += _recover_lost(context)
    leases = {lease.vm_id: lease for lease in context.store.leases()}
    records = context.store.vms()
    await context.network.start()
    for record in records:
        machine = Machine(
            record, leases.get(record.id), context.places.of(record.id), context.store
        )
        said += await _settle(engine, machine)
    said += await _sweep_ledger(context, {record.id for record in records})
    if not any(machine.vmm for machine in engine.machines()):
        await context.network.stop()
    for sentence in said:
        log.info("reconcile: %s", sentence)
    return said


async def _settle(engine: Engine, machine: Machine) -> list[str]:
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
    if machine.lease is not None and run.network in HAS_ADDRESS:
        context.network.adopted(machine.lease)
    try:
        await open_forwards(context, machine)
    except BangerError as error:
        log.warning("VM %s: its forwards could not be opened again: %s", machine.id, error)
    await _look_at_vmm(machine, vmm)
    machine.checker = asyncio.create_task(check_ready(machine), name=f"ready? {machine.id}")
    return True


async def _look_at_vmm(machine: Machine, vmm: RunningVmm) -> None:
    """Whether it is paused is what the VMM says: the daemon before may have ended between telling it and writing it down."""
    status = await vmm_status(vmm)
    state = {"running": VmState.RUNNING, "paused": VmState.PAUSED}.get(status or "")
    if state is not None and state is not machine.state:
        machine.enter(state)


async def check_ready(machine: Machine, timeout_s: float = 60.0) -> None:
    """Find out in the background whether an adopted VM is ready."""
    if machine.guest is None:
        return
    try:
        await machine.guest.wait_connected(timeout_s)
        await refresh_services(machine, timeout_s)
    except (BangerError, OSError) as error:
        log.info("VM %s: adopted, but not ready: %s", machine.id, error)
        return
    if machine.vmm is not None:
        machine.ready = all(machine.services.values())


async def _found_dead(context: Context, machine: Machine) -> list[str]:
    run = machine.record.run
    rebooted = run is not None and run.process.boot_id != proc.boot_id()
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


async def _sweep_ledger(context: Context, known: set[str]) -> list[str]:
    """Undo effects of VMs that have no record any more."""
    said = []
    for vm_id in sorted({row.vm_id for row in context.store.ledger()} - known):
        record = VmRecord(vm_id, vm_id, VmState.DELETING, "", "", VmSpec())
        machine = Machine(record, None, context.places.of(vm_id), context.store)
        try:
            await undo_effects(context, machine, tuple(EFFECTS))
            said.append(f"effects of the forgotten VM {vm_id} removed")
        except Exception as error:  # noqa: BLE001  the rows stay for the next start
            said.append(f"effects of the forgotten VM {vm_id} could not be removed: {error}")
    return said


def _recover_lost(context: Context) -> list[str]:
    """VMs whose directory has a ``vm.json`` but which the database does not know: it was lost or damaged."""
    known = {record.id for record in context.store.vms()}
    copies = sorted((context.places.state_dir / "vms").glob("*/vm.json"))
    return [
        _recover_one(context, path)
        for path in copies
        if path.parent.name not in known and is_id(path.parent.name)
    ]


def _recover_one(context: Context, path: Path) -> str:
    try:
        copy = msgspec.json.decode(path.read_bytes(), type=_Copy)
        run = copy.record.run
        runs = run is not None and proc.alive(run.process)
        record = copy.record.but(
            state=VmState.RUNNING if runs else VmState.STOPPED, run=run if runs else None
        )
        unknown = not runs and context.vmms.find(context.places.of(record.id)) is not None
        context.store.insert_vm(record, copy.lease)
        for effect in EFFECTS:
            context.store.intend(record.id, effect)
    except (msgspec.MsgspecError, BangerError, OSError) as error:
        return f"directory {path.parent} could not be recovered: {error}"
    end = "; its VMM is ended, start it again" if unknown else ""
    return f"VM {record.name} recovered from {path}{end}"
