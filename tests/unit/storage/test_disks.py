"""DiskStorage beyond its port: what the disks are, damage, verification, failures half-way."""

import asyncio
import subprocess
import threading
import time

import pytest

from banger.host import fs
from banger.model.errors import BangerError, CommandFailedError, HostLacksError, RefusedError
from banger.model.machine import StorageDriver
from banger.model.units import MIB
from banger.storage import disks
from banger.storage.disks import DiskStorage
from banger.storage.qcow2 import Qcow2
from tests.framework.toy import toy_image, toy_spec, vm_paths


@pytest.fixture
def boot(tmp_path):
    return toy_image(tmp_path / "image")


@pytest.fixture
def paths(tmp_path):
    return vm_paths(tmp_path)


def write_into(overlay, data_bytes=1 << 20):
    subprocess.run(
        ["qemu-io", "-f", "qcow2", "-c", f"write 0 {data_bytes}", str(overlay)],
        check=True,
        stdout=subprocess.DEVNULL,
    )


def debugfs(path, request):
    done = subprocess.run(
        ["/sbin/debugfs", "-w", "-R", request, path], check=True, capture_output=True, text=True
    )
    return done.stdout + done.stderr


async def test_both_disks_are_private_and_take_almost_no_room(boot, paths):
    spec = toy_spec(disk_bytes=8192 * MIB, work_bytes=4096 * MIB)
    assert (await DiskStorage().create(boot, spec, paths, StorageDriver.QCOW2)).startswith(
        "qcow2, "
    )
    for path in (paths.overlay, paths.work):
        assert path.stat().st_mode & 0o777 == 0o600
    assert fs.allocated_bytes(paths.overlay) < MIB
    assert paths.work.stat().st_size == 4096 * MIB
    assert fs.allocated_bytes(paths.work) < 24 * MIB


async def test_the_work_disk_keeps_what_the_seed_holds_and_is_a_clean_file_system(
    boot, paths, tmp_path
):
    (tmp_path / "note").write_text("from the seed")
    debugfs(boot.work_seed, f"write {tmp_path / 'note'} note")
    await DiskStorage().create(boot, toy_spec(work_bytes=256 * MIB), paths, StorageDriver.QCOW2)
    assert "from the seed" in debugfs(paths.work, "cat note")
    subprocess.run(["/sbin/e2fsck", "-f", "-n", paths.work], check=True, capture_output=True)


async def test_an_overlay_that_lost_its_end_is_told(boot, paths):
    storage = DiskStorage()
    await storage.create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    write_into(paths.overlay)
    await storage.check(boot, toy_spec(), paths)
    with paths.overlay.open("r+b") as file:
        file.truncate(paths.overlay.stat().st_size - 640 * 1024)
    with pytest.raises(HostLacksError, match=r"overlay\.qcow2 is damaged") as raised:
        await storage.check(boot, toy_spec(), paths)
    assert "ERROR" in raised.value.detail


async def test_an_overlay_of_another_size_is_told_with_both(boot, paths):
    storage = DiskStorage()
    await storage.create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    with pytest.raises(HostLacksError) as raised:
        await storage.check(boot, toy_spec(disk_bytes=128 * MIB), paths)
    assert "64M" in raised.value.detail
    assert "128M" in raised.value.detail


async def test_a_work_disk_without_a_file_system_is_told(boot, paths):
    storage = DiskStorage()
    await storage.create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    with paths.work.open("r+b") as file:
        file.write(bytes(1 << 16))
    with pytest.raises(HostLacksError, match="no ext4"):
        await storage.check(boot, toy_spec(), paths)


async def test_a_work_disk_that_was_in_use_can_grow(boot, paths):
    storage = DiskStorage()
    await storage.create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    debugfs(paths.work, "ssv mtime now")  # as after a mount: resize2fs demands a check first
    debugfs(paths.work, "ssv state 0")
    await storage.grow_work(paths, 128 * MIB)
    await storage.check(boot, toy_spec(work_bytes=128 * MIB), paths)


async def test_a_work_disk_that_could_not_grow_has_its_old_size(boot, paths, monkeypatch):
    storage = DiskStorage()
    await storage.create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    real = disks.run

    async def fail(argv, **options):
        if "resize2fs" in argv[0]:
            raise CommandFailedError(tuple(argv), "ended with status 1")
        return await real(argv, **options)

    monkeypatch.setattr(disks, "run", fail)
    with pytest.raises(CommandFailedError):
        await storage.grow_work(paths, 128 * MIB)
    await storage.check(boot, toy_spec(), paths)


async def test_a_damaged_work_disk_is_not_grown(boot, paths):
    storage = DiskStorage()
    await storage.create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    paths.work.write_bytes(bytes(64 * MIB))
    with pytest.raises(HostLacksError, match="is damaged"):
        await storage.grow_work(paths, 128 * MIB)
    assert paths.work.stat().st_size == 64 * MIB


async def test_too_little_space_is_refused_with_the_numbers(boot, paths, monkeypatch):
    monkeypatch.setattr(fs, "free_bytes", lambda _: 3 * MIB)
    with pytest.raises(HostLacksError, match="no space") as raised:
        await DiskStorage().create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    assert "3M are free" in raised.value.detail
    assert list(paths.state.iterdir()) == []


async def test_a_cancelled_create_leaves_nothing(boot, paths, monkeypatch):
    begun = asyncio.Event()

    async def hang(*_, **__):
        begun.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(disks, "run", hang)
    task = asyncio.create_task(
        DiskStorage().create(boot, toy_spec(work_bytes=128 * MIB), paths, StorageDriver.QCOW2)
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert list(paths.state.iterdir()) == []


@pytest.mark.parametrize("when", ["before the other begins", "while the other is made"])
async def test_when_one_disk_fails_the_other_is_removed_too(boot, paths, monkeypatch, when):
    begun, failed = threading.Event(), threading.Event()
    clone_file = fs.clone_file

    def slowly(source, target):
        if target == paths.work:
            begun.set()
            assert failed.wait(10)
            time.sleep(0.05)
        return clone_file(source, target)

    async def fail(*_):
        if when == "while the other is made":
            assert await asyncio.to_thread(begun.wait, 10)
        failed.set()
        raise RefusedError("no overlay today")

    monkeypatch.setattr(fs, "clone_file", slowly)
    monkeypatch.setattr(Qcow2, "make", fail)
    with pytest.raises(BangerError, match="no overlay today"):
        await DiskStorage().create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    await asyncio.sleep(0.1)
    assert list(paths.state.iterdir()) == []


async def test_an_image_path_with_blanks_and_commas_works(tmp_path, paths):
    storage, boot = DiskStorage(), toy_image(tmp_path / "an, image")
    await storage.create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    await storage.check(boot, toy_spec(), paths)


async def test_an_overlay_that_asks_for_data_of_another_file_is_neither_flattened_nor_started(
    boot, paths, tmp_path
):
    """A VMM that a guest had taken over could write such a header: with it qemu-img would read any file of the user's."""
    storage = DiskStorage()
    await storage.create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    with paths.overlay.open("r+b") as file:
        file.seek(79)
        file.write(b"\x04")  # incompatible feature: external data file
    for work in (
        storage.flatten(boot, toy_spec(), paths, tmp_path / "flat"),
        storage.check(boot, toy_spec(), paths),
    ):
        with pytest.raises(HostLacksError, match="not this VM's disk") as raised:
            await work
        assert "data in another file" in raised.value.detail
    assert not (tmp_path / "flat").exists()


async def test_a_flattened_disk_has_what_the_vm_wrote(boot, paths, tmp_path):
    storage = DiskStorage()
    await storage.create(boot, toy_spec(disk_bytes=80 * MIB), paths, StorageDriver.QCOW2)
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 70M 1M", paths.overlay], check=True, capture_output=True)  # fmt: skip
    await storage.flatten(boot, toy_spec(disk_bytes=80 * MIB), paths, tmp_path / "flat")
    flat = (tmp_path / "flat").read_bytes()
    assert flat[70 * MIB : 71 * MIB] == b"\x07" * MIB
    assert flat[: 64 * MIB] == boot.rootfs.read_bytes()
    boot.rootfs.unlink()  # it needs no other file
    assert fs.allocated_bytes(tmp_path / "flat") > MIB
