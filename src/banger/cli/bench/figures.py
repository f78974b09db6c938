"""Figures of repeated runs and their comparison with saved ones. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from banger.model.errors import InvalidInputError

FORMAT = 1
Runs = Sequence[Mapping[str, float]]
"""One mapping a run: milliseconds by what was measured."""


@dataclass(frozen=True, slots=True)
class Figure:
    """What one thing took in all runs, in milliseconds."""

    name: str
    median_ms: float
    p95_ms: float
    min_ms: float
    max_ms: float
    runs: int


def figures(runs: Runs) -> list[Figure]:
    """A figure for everything that was measured, in the order of its first run."""
    names = dict.fromkeys(name for run in runs for name in run)
    return [_figure(name, sorted(run[name] for run in runs if name in run)) for name in names]


def _figure(name: str, values: Sequence[float]) -> Figure:
    return Figure(
        name,
        round(statistics.median(values), 1),
        round(p95(values), 1),
        round(values[0], 1),
        round(values[-1], 1),
        len(values),
    )


def p95(values: Sequence[float]) -> float:
    """The value that 95 % of the sorted ``values`` do not exceed (nearest rank): of fewer than twenty that is the largest."""
    return values[max(0, -(-95 * len(values) // 100) - 1)]


def report(what: str, runs: Runs, facts: Mapping[str, Any]) -> dict[str, Any]:
    """What is printed as JSON and saved as a baseline."""
    return {
        "format": FORMAT,
        "benchmark": what,
        **facts,
        "runs": [dict(run) for run in runs],
        "figures": {
            each.name: {
                "median_ms": each.median_ms,
                "p95_ms": each.p95_ms,
                "min_ms": each.min_ms,
                "max_ms": each.max_ms,
            }
            for each in figures(runs)
        },
    }


def medians(saved: Any, path: str) -> dict[str, float]:  # noqa: ANN401  whatever JSON holds
    """The medians of a saved report, by name; InvalidInputError for anything else."""
    try:
        if saved["format"] != FORMAT:
            raise InvalidInputError(
                f"{path} is of another release of banger",
                detail=f"format {saved['format']}, not {FORMAT}",
                hint="banger bench create --save FILE",
            )
        return {str(name): float(each["median_ms"]) for name, each in saved["figures"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InvalidInputError(
            f"{path} is no saved benchmark",
            detail=str(error),
            hint="banger bench create --save FILE",
        ) from error
