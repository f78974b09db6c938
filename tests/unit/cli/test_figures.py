"""Figures of repeated runs, and saved ones."""

import json

import pytest

from banger.cli.bench.figures import figures, medians, p95, report
from banger.model.errors import InvalidInputError


def test_figures_are_of_all_runs_that_measured_it():
    ready, ssh = figures([{"ready": 30.0}, {"ready": 10.0, "ssh": 5.0}, {"ready": 20.0}])
    assert (ready.name, ready.median_ms, ready.p95_ms, ready.min_ms, ready.max_ms, ready.runs) == (
        "ready",
        20.0,
        30.0,
        10.0,
        30.0,
        3,
    )
    assert (ssh.median_ms, ssh.runs) == (5.0, 1)


def test_p95_is_a_value_that_was_measured():
    assert p95([1.0]) == 1.0
    assert p95([float(n) for n in range(1, 20)]) == 19.0
    assert p95([float(n) for n in range(1, 21)]) == 19.0
    assert p95([float(n) for n in range(1, 101)]) == 95.0


def test_a_saved_report_is_a_baseline():
    saved = json.loads(
        json.dumps(report("create", [{"ready": 10.0}, {"ready": 30.0}], {"accel": "tcg"}))
    )
    assert medians(saved, "x.json") == {"ready": 20.0}
    assert saved["accel"] == "tcg"


@pytest.mark.parametrize(
    "saved",
    [
        None,
        [],
        {},
        {"format": 1},
        {"format": 1, "figures": {"a": {}}},
        {"format": 1, "figures": []},
        {"format": 9, "figures": {}},
    ],
)
def test_anything_else_is_none_and_says_what_makes_one(saved):
    with pytest.raises(InvalidInputError) as raised:
        medians(saved, "x.json")
    assert "x.json" in raised.value.what
    assert raised.value.hint == "banger bench create --save FILE"
