"""Records as the API shows them. Pure; touches neither guest nor VMM."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Literal

from banger.api import schema
from banger.engine.audit import Fixed
from banger.engine.cleaning import Pruned
from banger.engine.forwards import wanted
from banger.engine.machine import Machine
from banger.model.manifest import ImageManifest
from banger.model.record import ErrorRecord, OperationRecord, StageRecord
from banger.model.residue import Finding
from banger.model.spec import Forward
from banger.model.usage import DiskUsage


def error(record: ErrorRecord | None) -> schema.Error | None:
    """An error record for the wire."""
    return (
        None
        if record is None
        else schema.Error(record.code, record.what, record.detail, record.hint)
    )


def forwards(values: Sequence[Forward]) -> list[schema.Forward]:
    """Forwards for the wire."""
    return [_forward(value) for value in values]


def _forward(value: Forward) -> schema.Forward:
    return schema.Forward(value.host_port, value.guest_port, value.protocol.value)


def vm_forwards(machine: Machine) -> list[schema.VmForward]:
    """All forwards of a VM with the ports that they have or, at rest, will have."""
    final = machine.record.forwards or wanted(machine.record.spec)
    return [
        schema.VmForward(f.host_port, f.guest_port, f.protocol.value, open=f in machine.relayed)
        for f in final
    ]


def vm(machine: Machine, image_name: str, services: Sequence[tuple[str, int]]) -> schema.Vm:
    """A VM; ``image_name`` and ``services`` (name, port) come from its image."""
    record = machine.record
    spec, run = record.spec, record.run
    return schema.Vm(
        id=record.id,
        name=record.name,
        state=record.state.value,
        ready=machine.ready,
        created_at=record.created_at,
        spec=schema.VmSpec(
            image=image_name,
            vcpus=spec.vcpus,
            memory_mib=spec.memory_mib,
            disk_bytes=spec.disk_bytes,
            work_bytes=spec.work_bytes,
            vmm=spec.vmm.value,
            network=spec.network.value,
            nat=spec.nat,
            forwards=forwards(spec.forwards),
            groups=list(spec.groups),
            autostart=spec.autostart,
        ),
        status=schema.VmStatus(
            vmm=run.vmm if run else None,
            accel=run.accel if run else None,
            pid=run.process.pid if run else None,
            network=run.network if run else None,
            ip=run.ip if run else None,
            booted_at=machine.booted_at,
            services=[
                schema.ServiceStatus(
                    name, port, ready=machine.services.get(name, False) and run is not None
                )
                for name, port in services
            ],
            forwards=forwards(record.forwards) if run else [],
            last_error=error(record.last_error),
            warning="; ".join(filter(None, (run.warning, *machine.notes.values()))) if run else "",
            storage=record.storage or None,
        ),
    )


def stage(record: StageRecord) -> schema.Stage:
    """A stage."""
    return schema.Stage(
        record.name, record.state.value, record.started_at, record.duration_ms, record.detail
    )


def operation(record: OperationRecord) -> schema.Operation:
    """An operation."""
    return schema.Operation(
        id=record.id,
        kind=record.kind,
        target=record.target,
        target_name=record.target_name,
        state=record.state.value,
        created_at=record.created_at,
        duration_ms=record.duration_ms,
        stages=[stage(item) for item in record.stages],
        error=error(record.error),
    )


SeedWord = Literal["current", "older", "none"]


def image(
    manifest: ImageManifest, allocated_bytes: int, used_by: Sequence[str], seed: SeedWord
) -> schema.Image:
    """An image, the names of the VMs that use it, and how its work seed is."""
    return schema.Image(
        id=manifest.id,
        name=manifest.name,
        distribution=manifest.distribution,
        release=manifest.release,
        architecture=manifest.architecture,
        created_at=manifest.created_at,
        disk_bytes=manifest.disk_bytes,
        allocated_bytes=allocated_bytes,
        kernel_release=manifest.kernel_release,
        services=[
            schema.ServiceStatus(item.name, item.port, ready=False) for item in manifest.services
        ],
        packages=manifest.packages,
        used_by=list(used_by),
        parent=manifest.parent or None,
        history=[
            schema.ImageHistory(one.at, one.action, one.parent or None, one.vm or None)
            for one in manifest.history
        ],
        seed=seed,
    )


def disk_usage(state_dir: str, usage: DiskUsage, drivers: Mapping[str, str]) -> schema.DiskUsage:
    """What takes how much; ``drivers`` are those of VMs by id."""
    return schema.DiskUsage(
        state_dir=state_dir,
        items=[
            schema.DiskUse(
                kind=item.owner.kind,
                id=item.owner.id,
                name=item.owner.name,
                logical_bytes=item.logical_bytes,
                allocated_bytes=item.allocated_bytes,
                shared_bytes=item.shared_bytes,
                own_bytes=item.own_bytes,
                storage=drivers.get(item.owner.id) or None,
            )
            for item in usage.items
        ],
        used_bytes=usage.used_bytes,
        exact=usage.exact,
        file_systems=[
            schema.FileSystem(one.path, one.size_bytes, one.free_bytes)
            for one in usage.file_systems
        ],
    )


def leftover(pruned: Pruned) -> schema.Leftover:
    """A leftover and what became of it."""
    item = pruned.leftover
    return schema.Leftover(
        item.kind, item.name, str(item.path), item.size_bytes, pruned.removed, error(pruned.error)
    )


def residue(finding: Finding) -> schema.Residue:
    """Where record and host differ."""
    return schema.Residue(
        finding.kind,
        finding.sense,
        finding.name,
        finding.what,
        finding.remedy.value,
        finding.vm_id or None,
        finding.hint,
    )


def fixed(item: Fixed) -> schema.Residue:
    """As `residue`, and what became of it."""
    found = residue(item.finding)
    found.fixed, found.did, found.error = item.fixed, item.did, error(item.error)
    return found
