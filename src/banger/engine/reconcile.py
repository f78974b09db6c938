"""At start-up: bring record and host together. What an earlier daemon began is finished or undone; what it left running is adopted.

Nothing here waits for a guest: a VM whose agent does not answer is still running, only not ready.
"""

from __future__ import annotations

import logging
from pathlib import Path

import msgspec

from banger.api.malformed import NOT_JSON
from banger.engine.context import Context
from banger.engine.effects import EFFECTS, undo_effects
from banger.engine.engine import Engine
from banger.engine.events import VmChange
from banger.engine.machine import Machine
from banger.engine.settle import ran_before_reboot, settle, settle_all
from banger.host import proc
from banger.model.errors import BangerError, RefusedError
from banger.model.ids import is_id
from banger.model.lease import Lease
from banger.model.record import VmRecord
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
    before = {record.id for record in records if ran_before_reboot(record)}
    await context.network.start()
    said += await settle_all(
        engine, [_machine(context, record, leases.get(record.id)) for record in records]
    )
    said += await _sweep_ledger(context, {record.id for record in records})
    running = [machine.id for machine in engine.machines() if machine.vmm is not None]
    said += await context.storage.sweep(context.places.state_dir / "vms", running)
    if not any(machine.vmm for machine in engine.machines()):
        await context.network.stop()
    said += _start_those_of_before(engine, before)
    for sentence in said:
        log.info("reconcile: %s", sentence)
    return said


def _machine(context: Context, record: VmRecord, lease: Lease | None) -> Machine:
    places, hub = context.places.of(record.id), context.board.hub
    return Machine(record, lease, places, context.store, hub)


def _start_those_of_before(engine: Engine, before: set[str]) -> list[str]:
    """Begin to start the VMs that ran when the host went down and are to come up with it. What one lacks keeps no other."""
    said = []
    for machine in engine.machines():
        if machine.id not in before or not machine.record.spec.autostart:
            continue
        if machine.state not in AT_REST:
            continue
        try:
            engine.start(machine, None)
            said.append(f"VM {machine.name}: is started again, as its autostart says")
        except BangerError as error:
            said.append(f"VM {machine.name}: could not be started again: {error}")
    return said


async def recover(engine: Engine, vm_id: str) -> str:
    """Take up a VM whose directory has its record and which the database does not know; a sentence. BangerError if that cannot be."""
    context = engine.context
    if any(record.id == vm_id for record in context.store.vms()):
        raise RefusedError(f"VM {vm_id} is known after all", hint="banger audit")
    said = _recover_one(context, context.places.of(vm_id).state / "vm.json")
    record = next((record for record in context.store.vms() if record.id == vm_id), None)
    if record is None:
        raise BangerError(f"VM {vm_id} could not be recovered", detail=said, hint="banger vm list")
    lease = next((lease for lease in context.store.leases() if lease.vm_id == vm_id), None)
    machine = _machine(context, record, lease)
    context.board.hub.tell(VmChange(machine.id, machine.name, machine.state))
    return "; ".join([said, *await settle(engine, machine)])


async def _sweep_ledger(context: Context, known: set[str]) -> list[str]:
    """Undo effects of VMs that have no record any more."""
    said = []
    for vm_id in sorted({row.vm_id for row in context.store.ledger()} - known):
        record = VmRecord(vm_id, vm_id, VmState.DELETING, "", "", VmSpec())
        machine = _machine(context, record, None)
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
    except (*NOT_JSON, BangerError, OSError) as error:
        return f"directory {path.parent} could not be recovered: {error}"
    end = "; its VMM is ended, start it again" if unknown else ""
    return f"VM {record.name} recovered from {path}{end}"
