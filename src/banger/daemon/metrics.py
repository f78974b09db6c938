"""What /metrics tells: counted from what the hub says since the daemon's start, and looked at when asked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from banger.engine.events import Happening, OperationChange, VmChange
from banger.engine.machine import Machine
from banger.model.state import OperationState, VmState

BUCKETS_S = (0.005, 0.02, 0.1, 0.5, 1, 2, 5, 10, 30, 120, 600)


class Metrics:
    """Counters of one daemon. Labels are of a few fixed words each: kinds, stages, states and codes, never names."""

    def __init__(self, version: str) -> None:
        self._registry = CollectorRegistry()
        registry = self._registry
        self._vms = Gauge("banger_vms", "VMs by state.", ["state"], registry=registry)
        self._ready = Gauge("banger_vms_ready", "VMs whose services answer.", registry=registry)
        self._live = Gauge(
            "banger_operations_live", "Operations that are not over.", registry=registry
        )
        self._operations = Histogram(
            "banger_operation_seconds", "How long operations took.", ["kind", "state"], buckets=BUCKETS_S, registry=registry
        )  # fmt: skip
        self._stages = Histogram(
            "banger_stage_seconds", "How long stages of operations took.", ["kind", "stage"], buckets=BUCKETS_S, registry=registry
        )  # fmt: skip
        self._errors = Counter(
            "banger_errors",
            "Operations that failed, by the error's code.",
            ["code"],
            registry=registry,
        )
        self._failures = Counter("banger_vm_failures", "Times that a VM failed.", registry=registry)
        self._residue = Gauge(
            "banger_residue", "Where record and host differed at the newest look, by kind.", ["kind"], registry=registry
        )  # fmt: skip
        Gauge("banger_info", "This daemon.", ["version"], registry=registry).labels(version).set(1)

    def note(self, happening: Happening) -> None:
        """Count it."""
        if isinstance(happening, VmChange):
            if happening.state is VmState.FAILED:
                self._failures.inc()
            return
        if isinstance(happening, OperationChange):
            self._note_operation(happening)

    def _note_operation(self, change: OperationChange) -> None:
        stage, operation = change.stage, change.operation
        if stage is not None:
            if stage.duration_ms is not None and stage.state is OperationState.SUCCEEDED:
                self._stages.labels(operation.kind, stage.name).observe(stage.duration_ms / 1000)
        elif operation.state.final:
            taken_s = (operation.duration_ms or 0.0) / 1000
            self._operations.labels(operation.kind, operation.state.value).observe(taken_s)
            if operation.error is not None:
                self._errors.labels(operation.error.code).inc()

    def text(self, machines: Sequence[Machine], live: int, residue: Mapping[str, int]) -> str:
        """All of them in Prometheus' text format, with how things are now; ``residue`` is what the newest audit found, by kind."""
        self._residue.clear()
        for kind, count in residue.items():
            self._residue.labels(kind).set(count)
        for state in VmState:
            self._vms.labels(state.value).set(sum(machine.state is state for machine in machines))
        self._ready.set(sum(machine.ready for machine in machines))
        self._live.set(live)
        return generate_latest(self._registry).decode()
