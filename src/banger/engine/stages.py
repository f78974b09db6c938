"""What the stages of create and start do on the host, up to a running VMM. The guest's part is in `banger.engine.boot`."""

from __future__ import annotations

import os
from contextlib import suppress

import msgspec

from banger.engine.boot import watch_exit
from banger.engine.context import Context
from banger.engine.dial import on_own_network
from banger.engine.forwards import open_forwards
from banger.engine.machine import Machine
from banger.engine.ports import Vmm
from banger.engine.steps import Job
from banger.host import fs
from banger.model import clock
from banger.model.clock import Deadline
from banger.model.machine import IdentityRequest, LaunchRequest
from banger.model.record import RunRecord
from banger.model.spec import NetworkMode


async def validate_new(context: Context, machine: Machine, job: Job) -> str:
    """The image is whole, and this host can run such a VM."""
    del job
    boot = context.images.boot_stack(machine.record.image_id)
    await context.storage.check_image(boot)
    root = context.storage.root(machine.paths)
    wanted = context.storage.wanted_format if root is None else root.format
    machine.backend = backend = await context.vmms.pick(machine.record.spec.vmm, wanted)
    if root is None:
        machine.storage = await context.storage.choose(
            boot, machine.paths, backend.name, backend.root_formats
        )
    return f"{boot.manifest.name} {boot.manifest.release}"


def _backend(machine: Machine) -> Vmm:
    if machine.backend is None:
        raise RuntimeError("validate comes first")
    return machine.backend


async def validate_existing(context: Context, machine: Machine, job: Job) -> str:
    """Image and disks are whole."""
    detail = await validate_new(context, machine, job)
    boot = context.images.boot_stack(machine.record.image_id)
    await context.storage.check(boot, machine.record.spec, machine.paths)
    return detail


def save_copy(machine: Machine) -> None:
    """Keep the record beside the VM's disks too (``vm.json``): from it a lost database is rebuilt, and a VM that runs adopted."""
    copy = {"record": machine.record.but(last_error=None), "lease": machine.lease}
    fs.write_atomic(machine.paths.state / "vm.json", msgspec.json.encode(copy))


async def reserve(context: Context, machine: Machine, job: Job) -> str:
    """The VM's directory; name and lease were taken with the request."""
    del context, job
    fs.make_private_dir(machine.paths.state)
    save_copy(machine)
    return machine.lease.ip if machine.lease else ""


async def make_disks(context: Context, machine: Machine, job: Job) -> str:
    """Root disk and work disk. A clone of a work seed that is not current is completed, and the seed is renewed for the next VM."""
    del job
    image_id = machine.record.image_id
    seed = await context.images.seed(image_id)
    boot = context.images.boot_stack(image_id)
    choice = machine.storage
    if choice is None:
        raise RuntimeError("validate comes first")
    made = await context.storage.create(boot, machine.record.spec, machine.paths, choice.driver)
    made = ", ".join(filter(None, (made, seed.detail)))
    if not seed.current:
        added = await context.images.complete_home(machine.paths.work, image_id)
        made += f", work seed of an older banger{f' (added {added})' if added else ''}"
        context.stale_seeds.put_nowait(image_id)
    machine.save(storage=choice.driver.value)
    save_copy(machine)
    return f"{made} ({choice.why})"


async def write_identity(context: Context, machine: Machine, job: Job) -> str:
    """The identity drive, with a fresh clock and fresh entropy, and the VM's addresses in the network in which it is about to run."""
    del job
    return await rewrite_identity(context, machine, await _settle(context, machine))


async def rewrite_identity(context: Context, machine: Machine, mtu: int | None = None) -> str:
    """The identity drive with the addresses as they are; whoever starts the VM renews it."""
    has_nic = machine.record.spec.network is not NetworkMode.NONE
    request = IdentityRequest(
        machine.id,
        machine.name,
        machine.lease if has_nic else None,
        mtu,
        context.images.boot_stack(machine.record.image_id).manifest.services,
        peers=bool(machine.record.spec.groups) and mtu is not None,  # QEMU's own network has none
    )
    await context.identity.write(request, machine.paths)
    return ""


async def _settle(context: Context, machine: Machine) -> int | None:
    """Give the VM its addresses in the network in which it is about to run, which may be another than last time; the MTU there."""
    if machine.lease is None:
        raise RuntimeError("every VM has a lease")
    lease, mtu = await context.network.settle(machine.lease, machine.record.spec.network)
    if lease != machine.lease:
        context.store.update_lease(lease)
        machine.lease = lease
        save_copy(machine)
    return mtu


async def start_vmm(context: Context, machine: Machine, job: Job) -> str:
    """The network's end and the VMM; from here on the guest's time counts."""
    attachment = machine.attachment
    if attachment is None or machine.lease is None:
        raise RuntimeError("the network stage comes first")
    boot = context.images.boot_stack(machine.record.image_id)
    root = await context.storage.open_root(boot, machine.record.spec, machine.paths)
    machine.store_trouble = ""
    request = LaunchRequest(
        machine.id,
        machine.name,
        machine.record.spec,
        boot,
        machine.paths,
        attachment,
        root,
        machine.lease.index,
    )
    with suppress(FileNotFoundError):
        machine.paths.console_log.unlink()
    vmm = await _backend(machine).launch(request)
    machine.vmm = vmm
    close_tap(machine)
    run = RunRecord(
        process=vmm.identity,
        vmm=vmm.vmm,
        accel=vmm.accel,
        network=attachment.mode,
        started_at=clock.now(),
        ip=attachment.lease.ip if attachment.lease and on_own_network(attachment.mode) else None,
        warning="; ".join(filter(None, (attachment.warning, vmm.warning))),
    )
    machine.save(run=run)
    save_copy(machine)
    machine.guest = context.guests(machine.paths, vmm.agent)
    watch_exit(machine)
    job.deadline = Deadline.after(job.ready_s)
    return f"{vmm.vmm}, {vmm.accel}, {vmm.confinement}"


def close_tap(machine: Machine) -> None:
    """Give up our descriptors of the attachment; the VMM has its own."""
    attachment, machine.attachment = machine.attachment, None
    for descriptor in attachment.descriptors if attachment else ():
        with suppress(OSError):
            os.close(descriptor)


async def attach_network(context: Context, machine: Machine, job: Job) -> str:
    """TAP and filter entries, and the forwards' listening ports."""
    del job
    fs.make_private_dir(machine.paths.runtime)
    spec = machine.record.spec
    if machine.lease is None:
        raise RuntimeError("every VM has a lease")
    machine.attachment = await context.network.attach(
        machine.lease,
        spec.network,
        named=_backend(machine).named_tap,
        outward=spec.nat,
        groups=spec.groups,
    )
    await open_forwards(context, machine)
    return machine.attachment.mode
