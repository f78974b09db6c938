"""/v1/vms: make, look at, change and remove VMs."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated

from litestar import Controller, delete, get, patch, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, Parameter
from msgspec import UNSET

from banger.api import schema
from banger.daemon import guest_answers
from banger.daemon.problems import problems
from banger.daemon.service import Service
from banger.engine import views
from banger.engine.adjust import Changes
from banger.engine.machine import Machine
from banger.host import fs, proc
from banger.model.errors import BangerError
from banger.model.promotion import Promotion
from banger.model.record import OperationRecord
from banger.model.spec import Forward, ForwardProtocol, NetworkMode, VmmChoice, VmSpec
from banger.model.state import WaitFor

Ref = Annotated[str, Parameter(description="name, id or unique id prefix", max_length=200)]
HEALTH_TIMEOUT_S = 5.0  # an emulated guest on a busy host is slow to answer once


def _operation(record: OperationRecord) -> schema.Operation:
    return views.operation(record)


def forwards_of(values: Sequence[schema.Forward]) -> tuple[Forward, ...]:
    """Forwards as the engine has them."""
    return tuple(
        Forward(value.host_port, value.guest_port, ForwardProtocol(value.protocol))
        for value in values
    )


def spec_of(service: Service, data: schema.VmCreate) -> VmSpec:
    """What a request asks for; NotFoundError for an unknown image, InvalidInputError."""
    image = service.image(data.image)
    return VmSpec(
        image=image.name,
        vcpus=data.vcpus,
        memory_mib=data.memory_mib,
        disk_bytes=image.disk_bytes if data.disk_bytes is None else data.disk_bytes,
        work_bytes=data.work_bytes,
        vmm=VmmChoice(data.vmm),
        network=NetworkMode(data.network),
        nat=data.nat,
        forwards=forwards_of(data.forwards),
        groups=tuple(data.groups),
        autostart=data.autostart,
    )


async def _why_silent(machine: Machine, error: BangerError) -> str:
    """Why a guest does not answer, if its VMM knows."""
    if machine.vmm is None:
        return error.what
    if machine.store_trouble:
        return f"{machine.store_trouble}; free space on this host, then: banger vm resume {machine.name}"
    try:
        status = await machine.vmm.status()
    except BangerError as silent:
        return f"{error.what}; {silent.what}"
    if status == "io-error":
        return f"a write to its disk failed, and it waits: free space on this host, then: banger vm resume {machine.name}"
    return error.what if status == "running" else f"{error.what}; it is {status}"


class VmController(Controller):
    """All verbs on VMs that are not streams."""

    path = "/v1/vms"
    tags: Sequence[str] | None = ["vms"]

    @get("/", summary="List VMs", operation_id="vmList")
    async def list_vms(self, service: NamedDependency[Service]) -> list[schema.Vm]:
        """All VMs, oldest first; touches neither guests nor VMMs."""
        return service.vm_views()

    @post(
        "/",
        status_code=202,
        summary="Create a VM",
        operation_id="vmCreate",
        responses=problems(400, 404, 409, 503),
    )
    async def create(
        self, service: NamedDependency[Service], data: JSONBody[schema.VmCreate]
    ) -> schema.Operation:
        """Begin vm.create; follow the operation to see it become ready."""
        run = service.engine.create(
            data.name,
            data.image,
            spec_of(service, data),
            start=data.start,
            ready_s=data.timeout_s,
            wait=WaitFor(data.wait),
        )
        return _operation(run.record)

    @get("/{ref:str}", summary="Show a VM", operation_id="vmShow", responses=problems(400, 404))
    async def show(self, service: NamedDependency[Service], ref: Ref) -> schema.Vm:
        """One VM; touches neither guest nor VMM."""
        return service.vm_view(service.engine.resolve(ref))

    @patch(
        "/{ref:str}",
        summary="Change a VM",
        operation_id="vmSet",
        responses=problems(400, 404, 409, 503),
    )
    async def change(
        self, service: NamedDependency[Service], ref: Ref, data: JSONBody[schema.VmPatch]
    ) -> schema.Vm:
        """Change forwards or nat of a VM, or also name, vcpus, memory or work disk of one at rest."""
        machine = service.engine.resolve(ref)
        await service.engine.change(machine, _changes(data))
        return service.vm_view(machine)

    @delete(
        "/{ref:str}",
        status_code=202,
        summary="Delete a VM",
        operation_id="vmDelete",
        responses=problems(400, 404, 409),
    )
    async def remove(self, service: NamedDependency[Service], ref: Ref) -> schema.Operation:
        """Begin vm.delete; a VM that runs is ended first."""
        return _operation(service.engine.delete(service.engine.resolve(ref)))

    @post(
        "/{ref:str}/start",
        status_code=202,
        summary="Start a VM",
        operation_id="vmStart",
        responses=problems(400, 404, 409, 503),
    )
    async def start(
        self,
        service: NamedDependency[Service],
        ref: Ref,
        data: JSONBody[schema.VmStart | None] = None,
    ) -> schema.Operation:
        """Begin vm.start."""
        wish = data or schema.VmStart()
        return _operation(
            service.engine.start(service.engine.resolve(ref), wish.timeout_s, WaitFor(wish.wait))
        )

    @post(
        "/{ref:str}/promote",
        status_code=202,
        summary="Make an image out of a stopped VM",
        operation_id="vmPromote",
        responses=problems(400, 404, 409, 503),
    )
    async def promote(
        self, service: NamedDependency[Service], ref: Ref, data: JSONBody[schema.ImagePromote]
    ) -> schema.Operation:
        """Begin vm.promote: the disks of a VM at rest become an image; the VM stays as it is."""
        wish = Promotion(data.name, data.with_work, data.clean_history, data.replace)
        machine = service.engine.resolve(ref)
        return _operation(await service.image_work.promote(machine, wish))

    @post(
        "/{ref:str}/stop",
        status_code=202,
        summary="Stop a VM",
        operation_id="vmStop",
        responses=problems(400, 404, 409),
    )
    async def stop(
        self,
        service: NamedDependency[Service],
        ref: Ref,
        data: JSONBody[schema.VmStop | None] = None,
    ) -> schema.Operation:
        """Begin vm.stop: the guest shuts down; with force the VMM is ended at once."""
        wish = data or schema.VmStop()
        return _operation(
            service.engine.stop(service.engine.resolve(ref), wish.timeout_s, force=wish.force)
        )

    @post(
        "/{ref:str}/restart",
        status_code=202,
        summary="Restart a VM",
        operation_id="vmRestart",
        responses=problems(400, 404, 409, 503),
    )
    async def restart(
        self,
        service: NamedDependency[Service],
        ref: Ref,
        data: JSONBody[schema.VmStart | None] = None,
    ) -> schema.Operation:
        """Begin vm.restart: stop if it runs, then start."""
        wish = data or schema.VmStart()
        return _operation(
            service.engine.restart(service.engine.resolve(ref), wish.timeout_s, WaitFor(wish.wait))
        )

    @post(
        "/{ref:str}/pause",
        status_code=202,
        summary="Pause a VM",
        operation_id="vmPause",
        responses=problems(400, 404, 409),
    )
    async def pause(self, service: NamedDependency[Service], ref: Ref) -> schema.Operation:
        """Begin vm.pause: the vCPUs stop, memory stays."""
        return _operation(service.engine.pause(service.engine.resolve(ref)))

    @post(
        "/{ref:str}/resume",
        status_code=202,
        summary="Resume a VM",
        operation_id="vmResume",
        responses=problems(400, 404, 409),
    )
    async def resume(self, service: NamedDependency[Service], ref: Ref) -> schema.Operation:
        """Begin vm.resume."""
        return _operation(service.engine.resume(service.engine.resolve(ref)))

    @get(
        "/{ref:str}/health",
        summary="Health of a guest",
        operation_id="vmHealth",
        responses=problems(400, 404),
    )
    async def health(self, service: NamedDependency[Service], ref: Ref) -> schema.Health:
        """What the guest says of itself, asked now with a deadline of two seconds."""
        machine = service.engine.resolve(ref)
        if machine.guest is None:
            return schema.Health(
                reachable=False, ready=False, detail=f"VM {machine.name} is {machine.state}"
            )
        try:
            said = await machine.guest.healthz(HEALTH_TIMEOUT_S)
        except BangerError as error:
            detail = await _why_silent(machine, error)
            return schema.Health(reachable=False, ready=False, detail=detail)
        return guest_answers.health(said)

    @get(
        "/{ref:str}/stats",
        summary="Use of resources",
        operation_id="vmStats",
        responses=problems(400, 404),
    )
    async def stats(self, service: NamedDependency[Service], ref: Ref) -> schema.Stats:
        """CPU, memory and disk, from the host and, where it answers, from inside the guest."""
        machine = service.engine.resolve(ref)
        paths = machine.paths
        cpu_s, rss_bytes = proc.usage(machine.vmm.identity.pid) if machine.vmm else (0.0, 0)
        stats = schema.Stats(
            vmm_cpu_s=cpu_s,
            vmm_rss_bytes=rss_bytes,
            overlay_bytes=await asyncio.to_thread(_root_bytes, service, machine),
            work_bytes=await asyncio.to_thread(fs.allocated_bytes, paths.work),
        )
        moved = service.context.network.traffic(machine.lease) if machine.lease else None
        if moved is not None:
            stats.net_sent_bytes, stats.net_received_bytes = moved
        if machine.guest is not None:
            try:
                guest_answers.fill_stats(stats, await machine.guest.stats(HEALTH_TIMEOUT_S))
            except BangerError:
                return stats  # the guest's half stays null: it did not answer
        return stats

    @get(
        "/{ref:str}/ports",
        summary="Listening sockets of a guest",
        operation_id="vmPorts",
        responses=problems(400, 404, 409, 504),
    )
    async def ports(self, service: NamedDependency[Service], ref: Ref) -> list[schema.Port]:
        """Sockets that listen inside, with the host's port that leads to each."""
        machine = service.engine.resolve(ref)
        leads = {
            (forward.protocol.value, forward.guest_port): forward.host_port
            for forward in reversed(machine.relayed)
        }
        return [
            guest_answers.port(item, leads)
            for item in await service.guest(ref).ports(HEALTH_TIMEOUT_S)
        ]


def _root_bytes(service: Service, machine: Machine) -> int:
    disk = service.context.storage.root(machine.paths)
    return 0 if disk is None else fs.allocated_bytes(disk.path)


def _changes(data: schema.VmPatch) -> Changes:
    return Changes(
        name=None if data.name is UNSET else data.name,
        vcpus=None if data.vcpus is UNSET else data.vcpus,
        memory_mib=None if data.memory_mib is UNSET else data.memory_mib,
        work_bytes=None if data.work_bytes is UNSET else data.work_bytes,
        forwards=None if data.forwards is UNSET else forwards_of(data.forwards),
        nat=None if data.nat is UNSET else data.nat,
        groups=None if data.groups is UNSET else tuple(data.groups),
        network=None if data.network is UNSET else NetworkMode(data.network),
        autostart=None if data.autostart is UNSET else data.autostart,
    )
