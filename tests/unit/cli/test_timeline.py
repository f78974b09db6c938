"""Where an operation's time went: bars, comparison and trace."""

import json

from banger.cli.output.timeline import BAR_CHARS, bars, compare, trace

BEGAN = "2026-01-01T00:00:0"


def stage(name, at, took, state="succeeded"):
    return {
        "name": name,
        "state": state,
        "started_at": f"{BEGAN}{at}Z",
        "duration_ms": took,
        "detail": "",
    }


def operation(number, *stages, took=1000.0, state="succeeded", kind="vm.create"):
    return {
        "id": f"op{number}", "kind": kind, "target": "t", "target_name": "box", "state": state, "error": None,
        "created_at": f"{BEGAN}0.000Z", "duration_ms": took, "stages": list(stages),
    }  # fmt: skip


def test_a_bar_shows_when_a_stage_ran():
    one = operation(
        1,
        stage("disks", "0.000", 250.0),
        stage("boot", "0.250", 500.0),
        stage("agent", "0.750", 250.0),
    )
    first, second, third = bars(one)
    assert first == "█" * 6 + "·" * 18
    assert second == "·" * 6 + "█" * 12 + "·" * 6
    assert third == "·" * 18 + "█" * 6


def test_the_shortest_and_the_latest_stage_are_seen_and_no_bar_is_too_long():
    one = operation(
        1,
        stage("a", "0.000", 0.0),
        stage("b", "1.000", 0.1),
        stage("c", "0.900", None, "running"),
        stage("d", "9.000", 900.0),
    )
    lines = bars(one)
    assert {len(line) for line in lines} == {BAR_CHARS}
    assert all("█" in line for line in lines)


def test_a_clock_that_was_set_back_harms_nothing():
    one = operation(1, stage("a", "0.000", 10.0))
    one["created_at"] = "2026-01-01T01:00:00.000Z"
    assert len(bars(one)[0]) == BAR_CHARS


def test_an_operation_is_compared_with_the_median_of_earlier_ones_of_its_kind():
    earlier = [
        operation(
            n, stage("disks", "0.000", 10.0 * n), stage("boot", "0.100", 500.0), took=600.0 * n
        )
        for n in (1, 2, 3)
    ]
    noise = [
        operation(7, stage("boot", "0.000", 1.0), kind="vm.start"),
        operation(8, stage("boot", "0.000", 1.0), state="failed"),
    ]
    later = operation(9, stage("boot", "0.000", 1.0))
    later["created_at"] = f"{BEGAN}5.000Z"
    this = operation(
        4, stage("disks", "0.000", 21.0), stage("boot", "0.100", 900.0), stage("new", "0.2", 5.0)
    )
    found = compare(this, [this, *earlier, *noise, later])
    assert (found.earlier, found.usual_ms) == (3, 1200.0)
    assert [(s.name, s.usual_ms) for s in found.stages] == [
        ("disks", 20.0),
        ("boot", 500.0),
        ("new", None),
    ]
    assert found.slowest.name == "boot"
    assert found.slowest.more_ms == 400.0


def test_what_is_as_always_has_no_slowest_stage():
    found = compare(
        operation(2, stage("boot", "0.000", 502.0)), [operation(1, stage("boot", "0.000", 500.0))]
    )
    assert found.slowest is None
    assert compare(operation(1), []).earlier == 0


def test_a_trace_has_the_operation_and_its_stages_in_microseconds():
    events = json.loads(trace([operation(1, stage("disks", "0.100", 250.5))]))["traceEvents"]
    name, whole, part = events
    assert (name["ph"], name["args"]) == ("M", {"name": "vm.create box"})
    assert (whole["ph"], whole["dur"], whole["args"]["id"]) == ("X", 1_000_000, "op1")
    assert (part["name"], part["dur"], part["ts"] - whole["ts"]) == ("disks", 250_500, 100_000)
