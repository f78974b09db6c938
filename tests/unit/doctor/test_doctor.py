"""The doctor: what it asks, how it weighs, what a person and a program read."""

import json
import os
import subprocess
import sys

import pytest

from banger.doctor import checks
from banger.doctor.checks import CHECKS, Check
from banger.doctor.report import as_json, as_text, examine, failed
from banger.host.config import load_config
from banger.host.probe import Answer


@pytest.fixture
def config(tmp_path):
    return load_config(
        {"HOME": str(tmp_path), "BANGER_STATE_DIR": str(tmp_path / "s"), "BANGER_RUNTIME_DIR": str(tmp_path / "r")}
    )  # fmt: skip


def check(answer, **options):
    def ask(_config):
        if isinstance(answer, Exception):
            raise answer
        return answer

    return Check("engine", ask, "it does not run", **options)


NO = Answer(ok=False, why="no oil\nsecond line", hint="add oil")


@pytest.mark.parametrize(("needed", "status"), [(True, "fail"), (False, "warn")])
def test_a_lack_weighs_as_much_as_what_needs_it(config, needed, status):
    (finding,) = examine([check(NO, needed=needed)], config)
    assert (finding.status, finding.hint, failed([finding])) == (status, "add oil", needed)


def test_a_check_that_breaks_says_so_and_the_others_are_asked(config):
    broken, fine = examine(
        [check(ValueError("odd"), needed=True), check(Answer(ok=True, found="there"))], config
    )
    assert (broken.status, fine.status) == ("fail", "ok")
    assert "odd" in broken.detail


def test_people_read_what_is_wrong_what_is_lost_and_one_next_step(config):
    text = as_text(examine([check(NO), check(Answer(ok=True, found="12 l"))], config))
    assert text.splitlines() == [
        "warn  engine  no oil",
        "              second line",
        "              then it does not run",
        "              hint: add oil",
        "ok    engine  12 l",
    ]


def test_programs_read_json(config):
    (row,) = json.loads(as_json(examine([check(NO)], config)))
    assert row["status"] == "warn"
    assert row["hint"] == "add oil"


def test_every_lack_of_this_host_has_a_next_step(config):
    for finding in examine(CHECKS, config):
        assert finding.status == "ok" or (finding.hint and finding.detail), finding


def test_a_full_disk_is_told(config, monkeypatch):
    monkeypatch.setattr(checks.fs, "free_bytes", lambda _: 1 << 20)
    found = {finding.name: finding for finding in examine(CHECKS, config)}
    assert found["state directory"].status == "fail"
    assert "1M free" in found["state directory"].detail


def test_the_command_works_without_a_daemon_and_leaves_nothing(tmp_path):
    env = {**os.environ, "BANGER_STATE_DIR": str(tmp_path / "s"), "BANGER_RUNTIME_DIR": str(tmp_path / "r")}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "banger.cli.main", "doctor", "--format", "json"], env=env, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode in {0, 5}, done.stderr
    rows = json.loads(done.stdout)
    assert {row["name"] for row in rows} == {check.name for check in CHECKS}
    assert (done.returncode == 5) == any(row["status"] == "fail" for row in rows)
    assert list(tmp_path.iterdir()) == []


def test_a_host_without_qemu_ends_with_status_5(tmp_path):
    env = {**os.environ, "BANGER_QEMU_PATH": str(tmp_path / "none"), "BANGER_STATE_DIR": str(tmp_path)}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "banger.cli.main", "doctor"], env=env, capture_output=True, text=True, check=False
    )  # fmt: skip
    assert done.returncode == 5
    assert "fail  qemu" in done.stdout


def test_a_volume_that_is_not_mounted_is_told_with_what_mounts_it(config):
    config.state_dir.mkdir()
    (config.state_dir / "vms").symlink_to(config.state_dir / "volume" / "vms")
    (check,) = [check for check in CHECKS if check.name == "state directory"]
    (finding,) = examine([check], config)
    assert finding.status == "fail"
    assert "not mounted" in finding.detail
    assert finding.hint == f"sudo banger setup storage --state-dir {config.state_dir}"


def test_without_a_helper_bridge_mode_is_missing_and_nothing_else_is(config, tmp_path):
    (found,) = [f for f in examine(CHECKS, config) if f.name == "bridge mode"]
    if found.status == "ok":
        pytest.skip("a helper runs on this host")
    assert found.status == "warn"
    assert found.hint in {"sudo banger setup helper", "sudo usermod -aG banger $USER, then log in again"}  # fmt: skip
