"""/v1/plans: what an operation would do, without doing any of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec
from litestar import Controller, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from banger.api import schema
from banger.daemon.handlers.vms import Ref, spec_of
from banger.daemon.problems import problems
from banger.daemon.service import Service
from banger.engine.plans import Planned
from banger.model.state import WaitFor


def _steps(steps: Sequence[Planned]) -> list[schema.PlannedStep]:
    return [schema.PlannedStep(step.stage, step.what, list(step.effects)) for step in steps]


class PlanController(Controller):
    """Dry runs."""

    path = "/v1/plans"
    tags: Sequence[str] | None = ["plans"]

    @post(
        "/vm.create",
        status_code=200,
        summary="Plan a VM",
        operation_id="planCreate",
        responses=problems(400, 404, 409, 503),
    )
    async def create(
        self, service: NamedDependency[Service], data: JSONBody[schema.VmCreate]
    ) -> list[schema.PlannedStep]:
        """The steps that vm.create would take, in order."""
        spec = spec_of(service, data)
        return _steps(
            await service.engine.plan_create(
                data.name, data.image, spec, start=data.start, wait=WaitFor(data.wait)
            )
        )

    @post(
        "/vm.start/{ref:str}",
        status_code=200,
        summary="Plan a start",
        operation_id="planStart",
        responses=problems(400, 404, 409, 503),
    )
    async def start(self, service: NamedDependency[Service], ref: Ref) -> list[schema.PlannedStep]:
        """The steps that vm.start would take; none if the VM runs."""
        return _steps(await service.engine.plan_start(service.engine.resolve(ref)))

    @post(
        "/image.build",
        status_code=200,
        summary="Plan an image build",
        operation_id="planImageBuild",
        responses=problems(400, 404, 503),
    )
    async def image_build(
        self, service: NamedDependency[Service], data: JSONBody[schema.ImageBuild | None] = None
    ) -> schema.ImagePlan:
        """The stages that image.build would go through, with the programs that they would run."""
        wish = data or schema.ImageBuild()
        plan = await asyncio.to_thread(service.context.images.plan, wish.recipe, name=wish.name)
        return msgspec.convert(plan, schema.ImagePlan, from_attributes=True)
