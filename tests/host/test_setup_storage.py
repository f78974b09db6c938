"""``banger setup storage`` for real: an xfs in a file, mounted in a mount namespace of the test's own, over an /etc of its own."""

import contextlib
import fcntl
import os
import subprocess

import pytest

from banger.host import fs, probe
from banger.model.units import MIB
from tests.framework.volume_host import VolumeHost

if not (probe.root() and probe.loop()):
    pytest.skip("needs root and loop devices", allow_module_level=True)


@pytest.fixture
def host(tmp_path):
    if probe.reflink(tmp_path):
        pytest.skip("this file system shares blocks")
    host = VolumeHost(tmp_path)
    image = host.state / "images" / ("d" * 12)
    image.mkdir(parents=True)
    with (image / "rootfs.img").open("wb") as file:
        file.write(os.urandom(4 * MIB))
        file.truncate(256 * MIB)
    yield host
    host.close()


@pytest.fixture
def image(host):
    return host.state / "images" / ("d" * 12) / "rootfs.img"


def test_images_are_in_a_file_system_that_shares_blocks_and_may_be_taken_out_again(host, image):
    before, was, fstab = image.read_bytes(), host.files(), host.fstab
    said = host.setup("--size", "1G")
    assert "mounted at" in said
    assert "by a line in /etc/fstab" in said
    assert host.files() == {"images", "vms", "volume", "volume.img"}
    here = host.inside(host.state / "volume")
    assert probe.reflink(here / "vms")
    moved = here / "images" / ("d" * 12) / "rootfs.img"
    assert moved.read_bytes() == before
    assert fs.allocated_bytes(moved) < 8 * MIB
    assert fs.allocated_bytes(host.state / "volume.img") < 200 * MIB
    assert f"{host.state}/volume.img {host.state}/volume xfs" in host.fstab
    for part in ("images", "vms"):
        assert os.readlink(host.state / part) == f"{host.state}/volume/{part}"
    assert "has its volume" in host.setup()  # again: nothing to do

    said = host.setup("--remove")
    assert host.files() == was | {"vms"}
    assert image.read_bytes() == before
    assert fs.allocated_bytes(image) < 8 * MIB
    assert host.fstab == fstab
    host.setup("--remove")


def test_a_copy_that_a_killed_set_up_left_is_not_taken_for_the_images(host, image):
    host.setup("--size", "1G")
    old = host.state / ".images.before-volume"
    old.mkdir()
    (old / "out of date").touch()
    (host.inside(host.state / "volume" / "images") / "new").touch()
    host.setup("--remove")
    assert sorted(path.name for path in (host.state / "images").iterdir()) == ["d" * 12, "new"]
    assert host.files() == {"images", "vms"}


def test_a_second_call_does_what_a_killed_one_did_not_come_to(host):
    host.setup("--size", "1G")
    (host.state / ".vms.before-volume").mkdir()
    host.run("sh", "-c", "echo > /etc/fstab", check=True)
    host.setup()
    assert host.files() == {"images", "vms", "volume", "volume.img"}
    assert "volume.img" in host.fstab
    host.setup("--remove")


def test_with_systemd_it_is_a_unit(host):
    host.boot_with_systemd()
    said = host.setup("--size", "1G")
    name = subprocess.run(
        ["systemd-escape", "-p", "--suffix=mount", host.state / "volume"],
        check=True, capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    assert f"by the unit {name}" in said
    unit = host.inside("/etc/systemd/system") / name
    assert f"What={host.state}/volume.img" in unit.read_text()
    assert host.systemctl() == ["daemon-reload", f"enable {name}"]
    host.setup("--remove")
    assert not unit.exists()
    assert host.systemctl()[2:] == [f"disable {name}", "daemon-reload"]


def test_after_a_restart_it_is_mounted_by_what_was_written_or_by_a_second_call(host):
    host.setup("--size", "1G")
    host.run("umount", host.state / "volume", check=True)
    host.run("mount", host.state / "volume", check=True)  # fstab has it
    assert host.inside(host.state / "images" / ("d" * 12)).parent.resolve()
    host.run("umount", host.state / "volume", check=True)
    host.setup()
    assert host.inside(host.state / "volume" / "images" / ("d" * 12) / "rootfs.img").exists()
    host.setup("--remove")


def test_the_file_may_lie_on_another_disk(host, image, tmp_path):
    elsewhere = tmp_path / "big disk"
    elsewhere.mkdir()
    host.setup("--size", "1G", "--path", str(elsewhere / "v.img"))
    assert (elsewhere / "v.img").stat().st_size == 1 << 30
    host.setup("--remove")
    assert list(elsewhere.iterdir()) == []
    assert image.exists()
    assert host.files() == {"images", "vms"}


def test_vms_stay_where_they_are(host):
    (host.state / "vms" / ("a" * 12)).mkdir(parents=True)
    said = host.setup(status=4)
    assert "has 1 VM" in said
    assert "hint: banger vm delete --all" in said
    assert host.files() == {"images", "vms"}


def test_vms_that_are_in_it_keep_it(host):
    host.setup("--size", "1G")
    host.inside(host.state / "volume" / "vms" / ("a" * 12)).mkdir()
    assert "has 1 VM" in host.setup("--remove", status=4)
    host.inside(host.state / "volume" / "vms" / ("a" * 12)).rmdir()
    host.setup("--remove")


def test_a_daemon_that_runs_is_in_the_way(host):
    with (host.state / "bangerd.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "hint: banger daemon stop" in host.setup(status=4)
    assert host.files() == {"images"}


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--size", "1M"], 2, "too small"),
        (["--size", "900T"], 2, "may not find room"),
        (["--path", "/nowhere/v.img"], 1, "nowhere"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(host, image, options, status, said):
    assert said in host.setup(*options, status=status)
    assert host.files() == {"images"}
    assert image.exists()


@pytest.mark.parametrize("missing", ["mkfs.xfs", "mount", "cp", "systemctl"])
def test_a_failure_half_way_leaves_everything_as_it_was(host, image, missing):
    host.boot_with_systemd()
    broken = host.directory / "bin" / missing
    broken.write_text("#!/bin/sh\necho it is broken >&2\nexit 1\n")
    broken.chmod(0o755)
    before, was = image.read_bytes(), host.files()
    assert "it is broken" in host.setup("--size", "1G", status=1)
    assert host.files() == was
    assert image.read_bytes() == before
    assert host.run("findmnt", host.state / "volume").returncode != 0
    units = host.inside("/etc/systemd/system")
    assert [path for path in units.iterdir() if "volume.mount" in path.name] == []
    broken.unlink() if missing != "systemctl" else broken.write_text("#!/bin/sh\n")
    host.setup("--size", "1G")
    host.setup("--remove")


@pytest.mark.parametrize("moment", ["mkfs.xfs", "mount", "cp", "systemctl"])
def test_what_a_killed_set_up_left_is_put_right_by_remove(host, image, moment):
    host.boot_with_systemd()
    deadly = host.directory / "bin" / moment
    deadly.write_text("#!/bin/sh\nkill -9 $PPID\n")
    deadly.chmod(0o755)
    before = image.read_bytes()
    host.setup("--size", "1G", status=-9)
    deadly.unlink()
    if moment == "systemctl":
        deadly.write_text("#!/bin/sh\n")
        deadly.chmod(0o755)
    with contextlib.suppress(AssertionError):
        said = host.setup("--size", "1G", status=4)
        assert "--remove" in said
    host.setup("--remove")
    assert image.read_bytes() == before
    assert host.files() <= {"images", "vms"}
    host.setup("--size", "1G")
    host.setup("--remove")
    assert image.read_bytes() == before
