"""/v1/vms/{ref}/forwards: ports of the host that lead into a VM, added and removed while it runs or is at rest."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from litestar import Controller, delete, get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody, Parameter

from banger.api import schema
from banger.daemon.handlers.vms import Ref, forwards_of
from banger.daemon.problems import problems
from banger.daemon.service import Service
from banger.engine import views
from banger.engine.adjust import Changes
from banger.model.spec import ForwardProtocol

Protocol = Annotated[schema.ProtocolName, Parameter(description="what it carries")]
HostPort = Annotated[int, Parameter(description="port of 127.0.0.1", ge=0, le=65535)]


class ForwardController(Controller):
    """What leads into one VM."""

    path = "/v1/vms/{ref:str}/forwards"
    tags: Sequence[str] | None = ["vms"]

    @get("/", summary="List forwards", operation_id="vmForwards", responses=problems(400, 404))
    async def list_forwards(
        self, service: NamedDependency[Service], ref: Ref
    ) -> list[schema.VmForward]:
        """A VM's forwards, with the one to SSH that every VM with a network has."""
        return views.vm_forwards(service.engine.resolve(ref))

    @post(
        "/",
        status_code=200,
        summary="Add forwards",
        operation_id="vmForwardsAdd",
        responses=problems(400, 404, 409, 503),
    )
    async def add(
        self, service: NamedDependency[Service], ref: Ref, data: JSONBody[schema.ForwardsAdd]
    ) -> list[schema.VmForward]:
        """Add forwards, all of them or none; they are the VM's until they are removed. Answers all that it has."""
        machine = service.engine.resolve(ref)
        await service.engine.change(machine, Changes(add=forwards_of(data.forwards)))
        return views.vm_forwards(machine)

    @delete(
        "/{protocol:str}/{host_port:int}",
        status_code=200,
        summary="Remove a forward",
        operation_id="vmForwardsRemove",
        responses=problems(400, 404, 409),
    )
    async def remove(
        self,
        service: NamedDependency[Service],
        ref: Ref,
        protocol: Protocol,
        host_port: HostPort,
    ) -> list[schema.VmForward]:
        """Remove the forward at this port of the host; its connections end. Answers those that are left."""
        machine = service.engine.resolve(ref)
        key = ForwardProtocol(protocol), host_port
        await service.engine.change(machine, Changes(remove=(key,)))
        return views.vm_forwards(machine)
