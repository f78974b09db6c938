"""/v1/info and /metrics."""

from __future__ import annotations

import os
from collections import Counter

from litestar import MediaType, get
from litestar.di import NamedDependency

from banger.api import schema
from banger.api.routes import API_VERSION
from banger.daemon.service import Service
from banger.model.state import OperationState, VmState


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
    """Counts in the Prometheus text format."""
    vms = Counter(machine.state for machine in service.engine.machines())
    operations = Counter(record.state for record in service.context.board.newest(1000))
    lines = ["# HELP banger_vms VMs by state.", "# TYPE banger_vms gauge"]
    lines += [f'banger_vms{{state="{state}"}} {vms[state]}' for state in VmState]
    lines += [
        "# HELP banger_operations The newest operations (at most 1000) by state.",
        "# TYPE banger_operations gauge",
    ]
    lines += [
        f'banger_operations{{state="{state}"}} {operations[state]}' for state in OperationState
    ]
    return "\n".join(lines) + "\n"
