"""op why, op show --trace, events: what a person and a program read, against a daemon over a real socket."""

import json

import pytest

from banger.api import schema
from banger.model.errors import HostLacksError
from tests.framework.stages import CREATE_STAGES
from tests.unit.cli.test_commands import Shell

AT = "2026-01-01T00:00:00.000Z"


def an_operation(number, disks_ms, state="succeeded", error=None):
    stages = [
        schema.Stage("disks", state, AT, disks_ms, "qcow2"),
        schema.Stage("boot", state, AT, 500.0),
    ]
    at = AT.replace("00.000", f"{number:02}.000")
    return schema.Operation(f"{number:012x}", "vm.create", "t", "web", state, at, disks_ms + 500, stages, error)  # fmt: skip


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture
def daemon(daemon):
    daemon.operations += [an_operation(4, 900.0), *(an_operation(n, 10.0) for n in (3, 2, 1))]
    return daemon


def test_why_names_the_stage_that_took_longer_than_usual(shell, daemon):
    done = shell.ok("op", "why", daemon.operations[0].id)
    assert [line.split() for line in done.stdout.splitlines()][:2] == [
        ["STAGE", "TOOK", "USUAL", "MORE"],
        ["disks", "900", "ms", "10", "ms", "+890", "ms"],
    ]
    assert done.stderr == "disks took 890 ms longer than the median of 3 earlier vm.create\n"
    found = json.loads(shell.ok("op", "why", daemon.operations[0].id, "--format", "json").stdout)
    assert (found["slowest"], found["earlier"], found["usual_ms"]) == ("disks", 3, 510.0)


def test_why_of_the_first_one_names_its_longest_stage(shell, daemon):
    done = shell.ok("op", "why", daemon.operations[-1].id)
    assert done.stderr == "no earlier vm.create to compare with; its longest stage was boot\n"
    assert shell.ok("op", "why", daemon.operations[1].id).stderr.startswith("no slower than")


def test_show_draws_when_stages_ran_and_writes_a_trace(shell, daemon):
    path = shell.home / "trace.json"
    done = shell.ok("op", "show", daemon.operations[0].id, "--trace", str(path))
    assert "█" in done.stdout
    names = [event["name"] for event in json.loads(path.read_text())["traceEvents"]]
    assert names == ["thread_name", "vm.create web", "disks", "boot"]
    shell.fails(2, "op", "show", daemon.operations[0].id, "--trace", str(shell.home / "none" / "x"))


def test_events_of_the_past_are_told_oldest_first(shell, daemon):
    problem = schema.Error("failure", "no room")
    daemon.operations.insert(0, an_operation(5, 1.0, "failed", problem))
    lines = shell.ok("events", "-n", "2").stdout.splitlines()
    assert [line.partition("Z  ")[2] for line in lines] == [
        "vm.create web succeeded  1.4 s",
        "vm.create web failed: no room  501 ms",
    ]


def test_what_happens_is_followed_and_a_daemon_that_ends_is_told(shell, daemon):
    running = an_operation(6, 1.0, "running")
    running.stages, running.duration_ms = [], None
    done = an_operation(6, 1.0)
    daemon.happenings = [
        ("operation", schema.OperationEvent(None, running)),
        ("operation", schema.OperationEvent(done.stages[0], done)),
        ("operation", schema.OperationEvent(None, done)),
        ("vm", schema.VmEvent(AT, "a" * 12, "web", "failed", "its QEMU was killed")),
        ("vm", schema.VmEvent(AT, "a" * 12, "web", None)),
        ("later", schema.VmEvent(AT, "a" * 12, "of a newer daemon", None)),
    ]
    ended = shell("events", "-f", "-n", "0")
    assert ended.returncode == 7
    assert "the daemon has ended" in ended.stderr
    assert [line.partition("Z  ")[2] for line in ended.stdout.splitlines()] == [
        f"vm.create web begins ({running.id})",
        "vm.create web: disks succeeded  1 ms  qcow2",
        "vm.create web succeeded  501 ms",
        "vm web is failed: its QEMU was killed",
        "vm web is deleted",
    ]
    rows = shell("events", "-f", "-n", "0", "--format", "json").stdout.splitlines()
    assert json.loads(rows[3])["trouble"] == "its QEMU was killed"


def traced(path):
    events = json.loads(path.read_text())["traceEvents"]
    return [event["name"] for event in events if event["ph"] == "X"]


def test_what_is_waited_for_can_be_traced_at_once(shell, daemon):
    path = shell.home / "trace.json"
    shell.ok("vm", "create", "--name", "own", "--trace", str(path), "--format", "name")
    assert traced(path) == ["vm.create own", *CREATE_STAGES]
    shell.ok("run", "--name", "ran", "--trace", str(path))
    assert traced(path) == ["vm.create ran", *CREATE_STAGES]
    shell.ok("vm", "stop", "own", "ran")
    shell.ok("vm", "start", "own", "ran", "--trace", str(path))
    assert [name for name in traced(path) if name.startswith("vm.")] == [
        "vm.start own",
        "vm.start ran",
    ]
    shell.ok("op", "wait", daemon.operations[-1].id, "--trace", str(path))
    assert traced(path)[0] == "vm.create web"


def test_what_failed_is_traced_too(shell, daemon):
    path = shell.home / "trace.json"
    daemon.fail_at["boot"] = HostLacksError("no room", hint="df")
    shell.fails(5, "vm", "create", "--name", "own", "--trace", str(path))
    assert traced(path)[-1] == "boot"


def test_a_trace_that_cannot_be_written_is_refused_before_anything_is_made(shell, daemon):
    for path in (shell.home / "none" / "x", shell.home):
        shell.fails(2, "vm", "create", "--name", "own", "--trace", str(path))
    for options in (["--no-wait"], ["--dry-run"]):
        done = shell("vm", "create", *options, "--trace", str(shell.home / "x"))
        assert (done.returncode, "--trace does not go with" in done.stderr) == (2, True)
    assert [vm.name for vm in daemon.vms] == ["web"]
