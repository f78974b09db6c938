"""Disks on file systems that are full, read-only or share blocks: mounted for the test, gone after it."""

import os
import statistics
import subprocess
import time

import pytest

from banger.host import fs, probe
from banger.model.errors import HostLacksError
from banger.model.machine import StorageDriver
from banger.model.units import GIB, MIB
from banger.storage import disks
from banger.storage.disks import DiskStorage
from tests.framework.toy import toy_image, toy_spec, vm_paths

if not probe.root():
    pytest.skip(probe.root().why, allow_module_level=True)


@pytest.fixture
def mount(tmp_path):
    """Mounts ``device`` (or a kind of file system) with options on a new directory."""
    mounted = []

    def do(kind, options, device="none"):
        where = tmp_path / f"mount{len(mounted)}"
        where.mkdir()
        subprocess.run(["mount", "-t", kind, "-o", options, device, where], check=True)
        mounted.append(where)
        return where

    yield do
    for where in reversed(mounted):
        subprocess.run(["umount", where], check=True)


@pytest.fixture
def xfs(mount, tmp_path):
    """A small XFS that shares blocks."""
    answer = probe.loop()
    if not answer:
        pytest.skip(answer.why)
    device = tmp_path / "xfs.img"
    with device.open("wb") as file:
        file.truncate(1 * GIB)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", device], check=True)
    return mount("xfs", "loop", device)


@pytest.fixture
def boot(tmp_path):
    boot = toy_image(tmp_path / "image")
    note = tmp_path / "note"
    note.write_bytes(os.urandom(6 * MIB))
    subprocess.run(
        ["/sbin/debugfs", "-w", "-R", f"write {note} note", boot.work_seed],
        check=True,
        capture_output=True,
    )
    return boot


async def test_a_disk_that_is_too_full_is_refused_with_numbers(boot, mount):
    paths = vm_paths(mount("tmpfs", "size=20m"))
    with pytest.raises(HostLacksError, match="no space") as raised:
        await DiskStorage().create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    assert "20M are free" in raised.value.detail
    assert raised.value.hint.startswith("banger vm list")
    assert os.listdir(paths.state) == []


async def test_a_disk_that_fills_up_meanwhile_leaves_nothing(boot, mount, monkeypatch):
    monkeypatch.setattr(disks, "RESERVE_BYTES", -(1 << 40))
    paths = vm_paths(mount("tmpfs", "size=2m"))
    with pytest.raises(HostLacksError, match="no space"):
        await DiskStorage().create(boot, toy_spec(work_bytes=128 * MIB), paths, StorageDriver.QCOW2)
    assert os.listdir(paths.state) == []


async def test_no_room_for_the_overlay_is_told_as_plainly(boot, mount, monkeypatch):
    monkeypatch.setattr(disks, "RESERVE_BYTES", -(1 << 40))

    async def no_work(*_):
        return ""

    monkeypatch.setattr(disks, "_make_work", no_work)
    paths = vm_paths(mount("tmpfs", "size=48k"))
    with pytest.raises(HostLacksError, match="no space"):
        await DiskStorage().create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    assert os.listdir(paths.state) == []


async def test_a_read_only_disk_is_named(boot, mount):
    where = mount("tmpfs", "size=200m")
    paths = vm_paths(where)
    subprocess.run(["mount", "-o", "remount,ro", where], check=True)
    with pytest.raises(HostLacksError, match="cannot work on the disks") as raised:
        await DiskStorage().create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    assert "Read-only file system" in raised.value.detail
    assert os.listdir(paths.state) == []
    await DiskStorage().delete(paths)


async def test_a_disk_that_cannot_be_removed_is_an_error(boot, mount):
    where = mount("tmpfs", "size=200m")
    paths = vm_paths(where)
    await DiskStorage().create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    subprocess.run(["mount", "-o", "remount,ro", where], check=True)
    with pytest.raises(HostLacksError, match="cannot work on the disks"):
        await DiskStorage().delete(paths)


async def test_growing_on_a_full_disk_keeps_the_old_size(boot, mount):
    where = mount("tmpfs", "size=90m")
    paths = vm_paths(where)
    storage = DiskStorage()
    await storage.create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    (where / "filler").write_bytes(bytes(fs.free_bytes(where)))
    with pytest.raises(HostLacksError, match="no space"):
        await storage.grow_work(paths, 8 * GIB)
    assert paths.work.stat().st_size == 64 * MIB


async def test_where_blocks_can_be_shared_a_clone_takes_none(xfs, boot):
    assert probe.reflink(xfs)
    here = toy_image(xfs / "image")
    here.work_seed.write_bytes(boot.work_seed.read_bytes())
    paths = vm_paths(xfs)
    before = fs.free_bytes(xfs)
    assert (
        await DiskStorage().create(here, toy_spec(), paths, StorageDriver.QCOW2) == "qcow2, reflink"
    )
    assert before - fs.free_bytes(xfs) < 2 * MIB
    assert paths.work.read_bytes() == here.work_seed.read_bytes()


async def test_large_disks_are_made_in_milliseconds(xfs):
    here = toy_image(xfs / "image")
    took_ms = []
    for number in range(5):
        paths = vm_paths(xfs, f"{number:012x}")
        began = time.monotonic()
        await DiskStorage().create(
            here, toy_spec(disk_bytes=64 * GIB, work_bytes=16 * GIB), paths, StorageDriver.QCOW2
        )
        took_ms.append((time.monotonic() - began) * 1000)
    print(f"create: {statistics.median(took_ms):.1f} ms")
    assert (
        statistics.median(took_ms) < 250
    )  # 17 ms on an idle machine; the promise of 60 ms is the bench's to keep
