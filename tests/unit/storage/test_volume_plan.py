"""The volume of `banger setup storage`: its size and the texts that bring it back at boot, golden."""

import shutil
import subprocess
from pathlib import Path

import pytest

from banger.model.errors import InvalidInputError
from banger.model.units import GIB
from banger.storage.volume_plan import (
    Volume,
    fstab_lines,
    size_of,
    undo_command,
    unit,
    unit_name,
    with_fstab_lines,
    without_fstab_lines,
)

VOLUME = Volume(Path("/var/lib/banger"), Path("/var/lib/banger/volume.img"))
ODD = Volume(Path("/home/me/a b%"), Path("/mnt/big disk/v.img"))


def test_by_default_it_takes_four_fifths_of_what_is_free():
    assert size_of(None, 100 * GIB) == 80 * GIB
    assert size_of(10 * GIB, 100 * GIB) == 10 * GIB


@pytest.mark.parametrize(("asked", "free"), [(None, GIB), (GIB // 2, 9 * GIB), (9 * GIB, 8 * GIB)])
def test_a_size_that_cannot_be_names_one_that_can(asked, free):
    with pytest.raises(InvalidInputError) as raised:
        size_of(asked, free)
    assert "--size" in raised.value.hint
    assert "are free" in raised.value.detail


def test_the_unit():
    assert unit(VOLUME) == (
        "# made by: banger setup storage\n[Unit]\nDescription=Storage of banger: a file system that shares blocks\n\n"
        "[Mount]\nWhat=/var/lib/banger/volume.img\nWhere=/var/lib/banger/volume\nType=xfs\n"
        "Options=loop,discard,nodev,nosuid\n\n[Install]\nWantedBy=multi-user.target\n"
    )
    assert "Where=/home/me/a b%%/volume\n" in unit(ODD)


@pytest.mark.parametrize("path", ["/var/lib/banger/volume", "/a-b/c d/é%", "/.hidden/x", "/x/.y"])
def test_its_name_is_what_systemd_wants(path):
    if shutil.which("systemd-escape") is None:
        pytest.skip("no systemd-escape")
    done = subprocess.run(
        ["systemd-escape", "-p", "--suffix=mount", path], check=True, capture_output=True, text=True
    )
    assert unit_name(Path(path)) == done.stdout.strip()


def test_the_lines_of_fstab():
    assert fstab_lines(VOLUME) == (
        "# made by: banger setup storage\n"
        "/var/lib/banger/volume.img /var/lib/banger/volume xfs loop,discard,nodev,nosuid,nofail 0 0\n"
    )
    assert "/mnt/big\\040disk/v.img /home/me/a\\040b%/volume xfs" in fstab_lines(ODD)


@pytest.mark.parametrize("before", ["", "# mine\nUUID=1 / ext4 defaults 0 1\n", "UUID=1 / ext4 defaults 0 1"])  # fmt: skip
def test_lines_are_added_once_and_taken_back_exactly(before):
    once = with_fstab_lines(before, VOLUME)
    assert once.count("volume.img") == 1
    assert with_fstab_lines(once, VOLUME) == once
    assert without_fstab_lines(once, VOLUME).rstrip("\n") == before.rstrip("\n")
    both = with_fstab_lines(once, ODD)
    assert without_fstab_lines(both, ODD) == once


def test_what_takes_it_back_can_be_pasted():
    assert undo_command(ODD) == "sudo banger setup storage --state-dir '/home/me/a b%' --remove"
