"""Whether there are control groups for VMMs; what they do is tested where there are (tests/host)."""

import errno
import os
import time

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


async def test_a_kernel_that_refuses_is_told_and_nothing_is_left(tmp_path):
    (tmp_path / "banger").write_text("in the way")
    with pytest.raises(HostLacksError, match="cannot be made"):
        await cgroup.create("a" * 12, 1 << 30, 64, tmp_path)


async def test_removing_what_is_not_there_is_fine(tmp_path):
    await cgroup.remove("a" * 12, tmp_path)


async def test_a_group_that_stays_busy_is_an_error_after_a_while(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroup, "_GONE_S", 0.05)

    def busy(_self):
        raise OSError(errno.EBUSY, "busy")

    monkeypatch.setattr(type(tmp_path), "rmdir", busy)
    with pytest.raises(OSError, match="busy"):
        await cgroup.remove("a" * 12, tmp_path)


def group_of(mount, name, *, populated=0, age_s=3600.0):
    """A cgroup as the kernel shows one."""
    group = mount / "banger" / name
    group.mkdir(parents=True)
    (group / "cgroup.events").write_text(f"populated {populated}\nfrozen 0\n")
    os.utime(group, (time.time() - age_s,) * 2)
    return group


def test_a_group_without_a_process_that_nobody_made_just_now_is_deserted(tmp_path):
    group_of(tmp_path, "a" * 12)
    group_of(tmp_path, "b" * 12, age_s=cgroup.DESERTED_S + 5)
    assert cgroup.deserted(tmp_path) == {"a" * 12, "b" * 12}


def test_a_group_that_may_be_in_use_or_is_no_vms_is_not_deserted(tmp_path):
    group_of(tmp_path, "a" * 12, populated=1)
    group_of(tmp_path, "b" * 12, age_s=cgroup.DESERTED_S - 30)
    group_of(tmp_path, "c" * 12, age_s=-3600)  # the clock was set back
    group_of(tmp_path, "mine")
    group_of(tmp_path, "A" * 12)
    (group_of(tmp_path, "d" * 12) / "cgroup.events").unlink()
    (tmp_path / "banger" / ("e" * 12)).write_text("no group")
    assert cgroup.deserted(tmp_path) == frozenset()


def test_where_there_are_no_groups_none_is_deserted(tmp_path):
    assert cgroup.deserted(tmp_path) == frozenset()
    (tmp_path / "banger").write_text("no directory")
    assert cgroup.deserted(tmp_path) == frozenset()


async def test_an_old_group_that_is_taken_again_is_young(tmp_path):
    group = group_of(tmp_path, "a" * 12)
    for path in (tmp_path, tmp_path / "banger"):
        (path / "cgroup.subtree_control").touch()
    assert await cgroup.create("a" * 12, 1 << 30, 64, tmp_path) == group
    assert cgroup.deserted(tmp_path) == frozenset()
