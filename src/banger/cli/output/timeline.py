"""Where the time of an operation went: bars for people, a comparison with earlier ones, a trace for Perfetto. Pure."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from banger.cli.output.data import Json
from banger.model import clock

BAR_CHARS = 24
_FULL, _NONE = "█", "·"
_SUCCEEDED = "succeeded"
_NOTEWORTHY_MS = 5.0


def _start_ms(operation: Json, stage: Json) -> float:
    """When ``stage`` began, after the operation did."""
    began = clock.parse(operation["created_at"])
    return max(0.0, (clock.parse(stage["started_at"]) - began).total_seconds() * 1000)


def _length_ms(operation: Json) -> float:
    """How long it took; of one that runs, until its last stage that is over."""
    ends = [
        _start_ms(operation, stage) + (stage["duration_ms"] or 0.0) for stage in operation["stages"]
    ]
    return max([operation["duration_ms"] or 0.0, *ends, 1.0])


def bars(operation: Json) -> list[str]:
    """A line of `BAR_CHARS` for each stage: when it ran, of the whole time."""
    scale = BAR_CHARS / _length_ms(operation)
    lines = []
    for stage in operation["stages"]:
        begin = min(round(_start_ms(operation, stage) * scale), BAR_CHARS - 1)
        length = min(max(1, round((stage["duration_ms"] or 0.0) * scale)), BAR_CHARS - begin)
        lines.append(_NONE * begin + _FULL * length + _NONE * (BAR_CHARS - begin - length))
    return lines


@dataclass(frozen=True, slots=True)
class StageTime:
    """A stage beside what is usual: ``usual_ms`` is the median of earlier ones, None if there were none."""

    name: str
    took_ms: float
    usual_ms: float | None

    @property
    def more_ms(self) -> float:
        """How much longer than usual."""
        return 0.0 if self.usual_ms is None else self.took_ms - self.usual_ms


@dataclass(frozen=True, slots=True)
class Comparison:
    """An operation beside ``earlier`` ones of its kind that succeeded."""

    stages: tuple[StageTime, ...]
    took_ms: float
    usual_ms: float | None
    earlier: int

    @property
    def slowest(self) -> StageTime | None:
        """Where it lost most against the usual; None if it lost nothing to speak of."""
        worst = max(self.stages, key=lambda stage: stage.more_ms, default=None)
        return worst if worst is not None and worst.more_ms > _NOTEWORTHY_MS else None


def compare(operation: Json, others: Iterable[Json]) -> Comparison:
    """``operation`` beside those of ``others`` that are of its kind, began before it and succeeded."""
    earlier = [
        other
        for other in others
        if other["kind"] == operation["kind"]
        and other["state"] == _SUCCEEDED
        and other["id"] != operation["id"]
        and other["created_at"] <= operation["created_at"]
    ]
    times: dict[str, list[float]] = {}
    for other in earlier:
        for stage in other["stages"]:
            if stage["duration_ms"] is not None:
                times.setdefault(stage["name"], []).append(stage["duration_ms"])
    stages = tuple(
        StageTime(stage["name"], stage["duration_ms"], _median(times.get(stage["name"], [])))
        for stage in operation["stages"]
        if stage["duration_ms"] is not None
    )
    whole = [other["duration_ms"] for other in earlier if other["duration_ms"] is not None]
    return Comparison(stages, operation["duration_ms"] or 0.0, _median(whole), len(earlier))


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None


def trace(operations: Iterable[Json]) -> str:
    """Trace events that Perfetto and Chrome's about:tracing draw: an operation a thread, its stages in it.

    The format is the "Trace Event Format"; times are microseconds of the wall clock.
    """
    events: list[Mapping[str, object]] = []
    for thread, operation in enumerate(operations, 1):
        title = f"{operation['kind']} {operation['target_name']}".strip()
        events.append(
            {"ph": "M", "name": "thread_name", "pid": 1, "tid": thread, "args": {"name": title}}
        )
        began_us = clock.parse(operation["created_at"]).timestamp() * 1e6
        facts = {"id": operation["id"], "state": operation["state"]}
        events.append(_slice(title, "operation", thread, began_us, _length_ms(operation), facts))
        for stage in operation["stages"]:
            start_us = began_us + _start_ms(operation, stage) * 1000
            facts = {"state": stage["state"], "detail": stage["detail"]}
            events.append(
                _slice(stage["name"], "stage", thread, start_us, stage["duration_ms"] or 0.0, facts)
            )
    return json.dumps({"traceEvents": events, "displayTimeUnit": "ms"}, indent=1)


def _slice(
    name: str, category: str, thread: int, start_us: float, took_ms: float, facts: Mapping[str, str]
) -> Mapping[str, object]:
    return {
        "ph": "X", "name": name, "cat": category, "pid": 1, "tid": thread,
        "ts": round(start_us), "dur": round(took_ms * 1000), "args": facts,
    }  # fmt: skip
