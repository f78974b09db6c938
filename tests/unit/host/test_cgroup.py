"""Whether there are control groups for VMMs; what they do is tested where there are (tests/host)."""

import errno

import pytest

from banger.host import cgroup
from banger.model.errors import HostLacksError


def test_version_1_is_told_with_what_to_do(tmp_path):
    answer = cgroup.probe(tmp_path)
    assert not answer
    assert "unified_cgroup_hierarchy" in answer.hint


def test_missing_controllers_are_named(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu pids\n")
    answer = cgroup.probe(tmp_path)
    assert not answer
    assert "memory" in answer.why
    assert answer.hint


def test_both_controllers_are_enough(tmp_path):
    (tmp_path / "cgroup.controllers").write_text("cpu memory pids\n")
    assert cgroup.probe(tmp_path)


def test_a_kernel_that_refuses_is_told_and_nothing_is_left(tmp_path):
    (tmp_path / "banger").write_text("in the way")
    with pytest.raises(HostLacksError, match="cannot be made"):
        cgroup.create("a" * 12, 1 << 30, 64, tmp_path)


def test_removing_what_is_not_there_is_fine(tmp_path):
    cgroup.remove("a" * 12, tmp_path)


def test_a_group_that_stays_busy_is_an_error_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroup, "_GONE_S", 0.05)

    def busy(_self):
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(type(tmp_path), "rmdir", busy)
    with pytest.raises(OSError, match="busy"):
        cgroup.remove("a" * 12, tmp_path)
