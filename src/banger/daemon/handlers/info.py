"""/v1/info and /metrics."""

from __future__ import annotations

import os

from litestar import MediaType, get
from litestar.di import NamedDependency

from banger.api import schema
from banger.api.routes import API_VERSION
from banger.daemon.service import Service


@get("/v1/info", summary="About this daemon", operation_id="info", tags=("daemon",))
async def info(service: NamedDependency[Service]) -> schema.Info:
    """Version, process, host facilities in use, and warnings."""
    network = await service.context.network.describe()
    return schema.Info(
        version=service.version,
        api_version=API_VERSION,
        pid=os.getpid(),
        started_at=service.started_at,
        state_dir=service.state_dir,
        runtime_dir=service.runtime_dir,
        accel=service.accel,
        network=network.get("mode", ""),
        network_detail=network.get("detail", ""),
        vms=len(service.engine.machines()),
        warnings=service.warnings,
    )


@get(
    "/metrics",
    summary="Metrics",
    operation_id="metrics",
    media_type=MediaType.TEXT,
    tags=("daemon",),
)
async def metrics(service: NamedDependency[Service]) -> str:
    """VMs, operations, stages and errors since the daemon's start, in Prometheus' text format."""
    machines, live = service.engine.machines(), service.context.board.live_count
    return service.metrics.text(machines, live, service.audit.last)
