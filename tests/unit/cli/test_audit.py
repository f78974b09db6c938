"""``banger audit`` as a program, against a daemon over a real socket."""

import json

import pytest

from banger.api import schema
from tests.framework.fake_daemon import FakeDaemon
from tests.unit.cli.test_commands import Shell

DEVICE = schema.Residue(
    "device", "unrecorded", "a" * 12, "there is a device of a root disk of VM a", "forget"
)
DISK = schema.Residue(
    "disk", "gone", "/state/work.img", "VM web: /state/work.img is missing", "none", "b" * 12, "banger vm delete web"
)  # fmt: skip


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


@pytest.fixture
def daemon(tmp_path):
    with FakeDaemon(tmp_path) as daemon:
        yield daemon


@pytest.mark.parametrize("fix", [[], ["--fix"]])
def test_without_residue_it_says_so_and_succeeds(shell, daemon, fix):
    done = shell.ok("audit", *fix)
    assert (done.stdout, done.stderr) == ("", "record and host agree\n")


def test_residue_is_a_table_with_hints_and_status_1(shell, daemon):
    daemon.residue = [DEVICE, DISK]
    done = shell("audit")
    assert done.returncode == 1
    head, *rows = done.stdout.splitlines()
    assert head.split("  ")[0] == "KIND"
    assert [row.split()[0] for row in rows] == ["device", "disk"]
    assert [row.split()[-1] for row in rows] == ["forget", "nothing"]
    assert done.stderr == "hint: banger vm delete web\n"


def test_fix_says_line_by_line_what_it_did_and_fails_as_long_as_something_is_left(shell, daemon):
    daemon.residue = [DEVICE, DISK]
    done = shell("audit", "--fix")
    assert done.returncode == 1
    _, first, second = done.stdout.splitlines()
    assert first.endswith("aaaaaaaaaaaa removed")
    assert second.endswith("left as it is; banger vm delete web")
    daemon.residue = [DEVICE]
    assert shell("audit", "--fix").returncode == 0
    shell.ok("audit")


def test_scripts_get_the_apis_objects_or_names(shell, daemon):
    daemon.residue = [DEVICE]
    (item,) = json.loads(shell("audit", "--format", "json").stdout)
    assert (item["kind"], item["remedy"], item["fixed"]) == ("device", "forget", False)
    done = shell("audit", "--format", "name")
    assert (done.stdout, done.returncode) == ("a" * 12 + "\n", 1)
