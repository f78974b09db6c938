"""/v1/disk-usage and /v1/prune: what takes room, and what of it can go."""

from __future__ import annotations

from litestar import get, post
from litestar.di import NamedDependency
from litestar.params import JSONBody

from banger.api import schema
from banger.daemon.problems import problems
from banger.daemon.service import Service
from banger.engine import views
from banger.engine.cleaning import Cleaning, Wish


def _cleaning(service: Service) -> Cleaning:
    return Cleaning(service.engine, service.image_work, service.default_image)


@get(
    "/v1/disk-usage",
    summary="What takes how much of the disk",
    operation_id="diskUsage",
    responses=problems(503),
    tags=("daemon",),
)
async def disk_usage(service: NamedDependency[Service]) -> schema.DiskUsage:
    """By VM and image, with shared blocks told from own ones. Metadata are read, no disk's content; a few seconds at most."""
    usage = await _cleaning(service).usage()
    drivers = {machine.id: machine.record.storage for machine in service.engine.machines()}
    return views.disk_usage(service.state_dir, usage, drivers)


@post(
    "/v1/prune",
    status_code=200,
    summary="Remove what nothing uses",
    operation_id="prune",
    responses=problems(400, 503),
    tags=("daemon",),
)
async def prune(
    service: NamedDependency[Service], data: JSONBody[schema.Prune | None] = None
) -> list[schema.Leftover]:
    """What was removed, or in a dry run would be. What cannot be removed has an error and does not keep the rest."""
    wish = data or schema.Prune()
    done = await _cleaning(service).prune(Wish(wish.images, wish.databases), dry_run=wish.dry_run)
    return [views.leftover(item) for item in done]


HANDLERS = (disk_usage, prune)
