"""``vm.adjust``: what of a VM may change while it runs as well as at rest: its forwards, whether it reaches the outside, and its groups."""

from __future__ import annotations

import functools
from dataclasses import dataclass, replace

from banger.engine import forwards
from banger.engine.context import Context
from banger.engine.dial import on_own_network
from banger.engine.machine import Machine
from banger.engine.operations import OperationRun
from banger.engine.stages import save_copy
from banger.host.undo import UndoStack
from banger.model.errors import RefusedError
from banger.model.record import VmRecord
from banger.model.spec import Forward, ForwardProtocol, NetworkMode, VmSpec


@dataclass(frozen=True, slots=True)
class Changes:
    """What a VM's ``set`` and ``forward`` may change; None leaves a value as it is. ``add`` and ``remove`` are applied to ``forwards``."""

    name: str | None = None
    vcpus: int | None = None
    memory_mib: int | None = None
    work_bytes: int | None = None
    forwards: tuple[Forward, ...] | None = None
    nat: bool | None = None
    groups: tuple[str, ...] | None = None
    network: NetworkMode | None = None
    autostart: bool | None = None
    add: tuple[Forward, ...] = ()
    remove: tuple[tuple[ForwardProtocol, int], ...] = ()

    @property
    def small(self) -> bool:
        """Whether a VM can take them while it runs."""
        fixed = (self.name, self.vcpus, self.memory_mib, self.work_bytes, self.network)
        return all(value is None for value in fixed)


def adjusted(record: VmRecord, changes: Changes) -> tuple[VmSpec, tuple[Forward, ...]]:
    """The spec with NAT, groups and forwards changed, and the final forwards that are left of those that there were. Pure."""
    if changes.forwards is not None:
        record = record.but(spec=replace(record.spec, forwards=changes.forwards))
    asked, earlier = forwards.remove(record, changes.remove)
    record = record.but(spec=replace(record.spec, forwards=asked), forwards=earlier)
    nat = record.spec.nat if changes.nat is None else changes.nat
    groups = record.spec.groups if changes.groups is None else changes.groups
    autostart = record.spec.autostart if changes.autostart is None else changes.autostart
    wanted = forwards.add(record, changes.add)
    spec = replace(record.spec, nat=nat, groups=groups, forwards=wanted, autostart=autostart)
    return spec, earlier


async def adjust(context: Context, machine: Machine, run: OperationRun, changes: Changes) -> None:
    """Change a VM that runs, or is at rest, all or nothing: first the host, then the record, then what is no longer wanted goes."""
    async with run.stage("validate"):
        spec, earlier = adjusted(machine.record, changes)
        if machine.vmm is not None:
            _refuse_fixed(machine, spec)
    async with UndoStack() as undo:
        closing: list[Forward] = []
        if machine.vmm is None:
            final = forwards.settle(context, spec, earlier)
        else:
            if spec.nat != machine.record.spec.nat:
                async with run.stage("nat"):
                    await _set_nat(context, machine, spec, undo)
            if set(spec.groups) != set(machine.record.spec.groups):
                async with run.stage("groups"):
                    await _set_groups(context, machine, spec, undo)
            async with run.stage("forwards"):
                final, closing = await forwards.switch(context, machine, spec, earlier, undo)
        async with run.stage("record"):
            before = machine.record
            undo.push("write the record as it was", functools.partial(_write_back, machine, before))
            machine.save(spec=spec, forwards=final)
            save_copy(machine)
        undo.release()
    for forward in closing:
        await forwards.close(context, machine, forward)


def _refuse_fixed(machine: Machine, spec: VmSpec) -> None:
    """QEMU is told once, at its start, where its own user network leads."""
    run = machine.record.run
    if run is not None and run.network == "qemu-user" and spec.nat != machine.record.spec.nat:
        word = "--nat" if spec.nat else "--no-nat"
        raise RefusedError(
            f"whether VM {machine.name} reaches the outside cannot change while it runs",
            detail="it is on QEMU's own network, which is fixed at its start",
            hint=f"banger vm stop {machine.name}, then: banger vm set {machine.name} {word}",
        )


async def _set_nat(context: Context, machine: Machine, spec: VmSpec, undo: UndoStack) -> None:
    lease, run = machine.lease, machine.record.run
    if lease is None or run is None or not on_own_network(run.network):
        return  # no network: nothing leads out, whatever is asked
    set_outward = functools.partial(context.network.set_outward, lease)
    undo.push("set NAT back", functools.partial(set_outward, outward=machine.record.spec.nat))
    await set_outward(outward=spec.nat)


async def _set_groups(context: Context, machine: Machine, spec: VmSpec, undo: UndoStack) -> None:
    lease, run = machine.lease, machine.record.run
    if lease is None or run is None or not on_own_network(run.network):
        return  # it is alone
    before = machine.record.spec.groups
    undo.push("set groups back", lambda: context.network.set_groups(lease, before))
    await context.network.set_groups(lease, spec.groups)


def _write_back(machine: Machine, before: VmRecord) -> None:
    if machine.record is not before:
        machine.save(spec=before.spec, forwards=before.forwards)
