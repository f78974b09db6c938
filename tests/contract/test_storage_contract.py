"""What storage promises (`engine.ports.Storage`): one suite for the fake and for real disks of small images, by every driver that works here.

Snapshot devices are made by this process, and once more by a banger-helper, where the kernel has no device mapper on a fake one over real loop devices.
"""

import tempfile
from pathlib import Path

import pytest

from banger.host import fs, probe
from banger.model.errors import BangerError, HostLacksError, InvalidInputError, RefusedError
from banger.model.machine import DiskFormat, RootDisk, StorageDriver
from banger.model.units import MIB
from banger.storage.disks import DiskStorage
from banger.storage.drivers import file_of
from tests.framework.fakes.storage import FakeStorage
from tests.framework.reflink import reflink_volume
from tests.framework.snapshot_host import client_of, snapshot_host
from tests.framework.toy import toy_image, toy_spec, vm_paths

HELPER = "through banger-helper"


@pytest.fixture(params=[FakeStorage, DiskStorage, HELPER])
async def storage(request, tmp_path):
    if request.param != HELPER:
        yield request.param()
        return
    if "driver" not in request.fixturenames:
        pytest.skip("no root disk is made")
    for answer in (probe.root(), probe.loop()):
        if not answer:
            pytest.skip(answer.why)
    with tempfile.TemporaryDirectory(prefix="bgh-", dir="/tmp") as short:
        async with snapshot_host(Path(short)) as host:
            yield DiskStorage(snapshots=client_of(host))


@pytest.fixture(params=list(StorageDriver))
def driver(request):
    driver, kind = request.param, request.node.callspec.params["storage"]
    if kind == HELPER and driver is not StorageDriver.DM_SNAPSHOT:
        pytest.skip("that is no snapshot")
    if driver is StorageDriver.DM_SNAPSHOT and kind is DiskStorage and not probe.device_mapper():
        pytest.skip(probe.device_mapper().why)
    return driver


@pytest.fixture
def place(tmp_path, request):
    """A directory; on a file system that shares blocks if the driver needs one."""
    driver = request.getfixturevalue("driver") if "driver" in request.fixturenames else None
    if driver is not StorageDriver.REFLINK or probe.reflink(tmp_path):
        yield tmp_path
        return
    for answer in (probe.root(), probe.loop()):
        if not answer:
            pytest.skip(f"no file system that shares blocks: {answer.why}")
    with reflink_volume(tmp_path) as volume:
        yield volume


@pytest.fixture
def boot(place):
    return toy_image(place / "image")


@pytest.fixture
async def paths(place, storage):
    paths = vm_paths(place)
    yield paths
    await storage.close_root(paths)


def left(paths):
    return sorted(path.name for path in paths.state.iterdir())


async def test_disks_that_were_made_pass_their_check(storage, driver, boot, paths):
    assert await storage.create(boot, toy_spec(), paths, driver)
    assert storage.root(paths) == RootDisk(file_of(paths, driver), driver.disk_format)
    assert left(paths) == [file_of(paths, driver).name, "work.img"]
    await storage.check(boot, toy_spec(), paths)


async def test_disks_may_be_larger_than_the_images(storage, driver, boot, paths):
    spec = toy_spec(disk_bytes=300 * MIB, work_bytes=200 * MIB)
    await storage.create(boot, spec, paths, driver)
    await storage.check(boot, spec, paths)


@pytest.mark.parametrize(
    ("changes", "option"),
    [({"disk_bytes": 64 * MIB}, "--disk-size"), ({"work_bytes": 64 * MIB}, "--work-size")],
)
async def test_a_size_below_the_images_is_refused_with_the_least(
    storage, driver, tmp_path, paths, changes, option
):
    boot = toy_image(tmp_path / "big", seed_bytes=80 * MIB, rootfs_bytes=80 * MIB)
    spec = toy_spec(**{"disk_bytes": 128 * MIB, "work_bytes": 128 * MIB, **changes})
    with pytest.raises(InvalidInputError) as raised:
        await storage.create(boot, spec, paths, driver)
    assert option in raised.value.hint
    assert "80M" in raised.value.hint
    assert left(paths) == []


async def test_disks_that_are_there_are_not_replaced(storage, driver, boot, paths):
    await storage.create(boot, toy_spec(), paths, driver)
    file_of(paths, driver).unlink()
    before = paths.work.read_bytes()
    with pytest.raises(RefusedError, match=r"work\.img"):
        await storage.create(boot, toy_spec(), paths, driver)
    assert paths.work.read_bytes() == before
    assert left(paths) == ["work.img"]


@pytest.mark.parametrize("name", ["overlay", "work"])
async def test_a_lost_disk_is_named_with_a_next_step(storage, driver, boot, paths, name):
    await storage.create(boot, toy_spec(), paths, driver)
    path = paths.work if name == "work" else file_of(paths, driver)
    path.unlink()
    with pytest.raises(HostLacksError, match=name) as raised:
        await storage.check(boot, toy_spec(), paths)
    assert f"banger vm delete {paths.state.name}" in raised.value.hint


@pytest.mark.parametrize("name", ["overlay", "work"])
async def test_an_emptied_disk_is_named(storage, driver, boot, paths, name):
    await storage.create(boot, toy_spec(), paths, driver)
    path = paths.work if name == "work" else file_of(paths, driver)
    path.write_bytes(b"")
    with pytest.raises(HostLacksError, match=path.name):
        await storage.check(boot, toy_spec(), paths)


async def test_an_overlay_of_another_image_is_refused(storage, boot, paths, tmp_path):
    await storage.create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    with pytest.raises(HostLacksError, match="overlay"):
        await storage.check(toy_image(tmp_path / "other"), toy_spec(), paths)


async def test_there_is_no_root_disk_before_and_after(storage, driver, boot, paths):
    assert storage.root(paths) is None
    await storage.create(boot, toy_spec(), paths, driver)
    await storage.delete(paths)
    assert storage.root(paths) is None


async def test_a_vm_gets_one_root_disk_whatever_its_driver(storage, driver, boot, paths):
    await storage.create(boot, toy_spec(), paths, driver)
    for other in StorageDriver:
        with pytest.raises(RefusedError, match="there already"):
            await storage.create(boot, toy_spec(), paths, other)


async def test_a_root_disk_is_opened_for_a_run_as_often_as_needed(storage, driver, boot, paths):
    await storage.create(boot, toy_spec(), paths, driver)
    for _ in range(2):
        disk = await storage.open_root(boot, toy_spec(), paths)
        assert disk.format is driver.disk_format
        assert disk.path.is_block_device() is disk.device
        await storage.close_root(paths)
        await storage.close_root(paths)
    await storage.check(boot, toy_spec(), paths)


async def test_what_is_lost_cannot_be_opened(storage, boot, paths):
    with pytest.raises(HostLacksError, match="missing"):
        await storage.open_root(boot, toy_spec(), paths)
    await storage.close_root(paths)


async def test_a_run_that_nobody_knows_any_more_is_swept_away(storage, driver, boot, paths):
    await storage.create(boot, toy_spec(), paths, driver)
    await storage.open_root(boot, toy_spec(), paths)
    assert await storage.sweep(paths.state.parent, [paths.state.name]) == []
    said = await storage.sweep(paths.state.parent, [])
    assert bool(said) is (driver is StorageDriver.DM_SNAPSHOT or isinstance(storage, FakeStorage))
    assert await storage.sweep(paths.state.parent, []) == []


async def test_of_disks_without_a_store_nothing_is_tended(storage, boot, paths):
    await storage.create(boot, toy_spec(), paths, StorageDriver.QCOW2)
    assert await storage.tend([paths]) == []


async def test_a_driver_that_the_vmm_can_read_is_chosen_with_a_reason(storage, boot, paths):
    for formats in ([DiskFormat.QCOW2, DiskFormat.RAW], [DiskFormat.RAW]):
        choice = await storage.choose(boot, paths, "qemu", formats)
        assert choice.driver.disk_format in formats
        assert choice.why
        await storage.create(boot, toy_spec(), paths, choice.driver)
        await storage.delete(paths)


async def test_a_whole_image_passes(storage, boot):
    await storage.check_image(boot)


@pytest.mark.parametrize("name", ["kernel", "initramfs", "rootfs"])
async def test_a_missing_or_cut_file_of_the_image_is_named(storage, boot, name):
    path = getattr(boot, name)
    with path.open("ab") as file:
        file.truncate(path.stat().st_size - 1)
    for _ in range(2):
        with pytest.raises(HostLacksError, match=path.name) as raised:
            await storage.check_image(boot)
        assert raised.value.hint == "banger image build debian --force"
        path.unlink(missing_ok=True)


async def test_a_work_seed_that_is_missing_is_not_the_storages_to_judge(storage, boot):
    """It is made again, by the catalogue of images."""
    boot.work_seed.unlink()
    await storage.check_image(boot)


async def test_a_root_disk_becomes_a_file_of_its_own(
    request, storage, driver, boot, paths, tmp_path
):
    if request.node.callspec.params["storage"] == HELPER and not probe.device_mapper():
        pytest.skip("the fake mapper's devices do not have the image's content")
    spec = toy_spec(disk_bytes=100 * MIB)
    await storage.create(boot, spec, paths, driver)
    target = tmp_path / "flat.img"
    assert await storage.flatten(boot, spec, paths, target)
    assert target.stat().st_size == 100 * MIB
    assert storage.flat_bytes(boot, paths) >= 0
    if not isinstance(storage, FakeStorage):
        mine = target.read_bytes()
        assert mine[: 64 * MIB] == boot.rootfs.read_bytes()
        assert fs.allocated_bytes(target) <= fs.allocated_bytes(boot.rootfs) + MIB
    await storage.check(boot, spec, paths)
    await storage.open_root(boot, spec, paths)


async def test_a_lost_root_disk_is_not_flattened(storage, boot, paths, tmp_path):
    with pytest.raises(HostLacksError, match="missing"):
        await storage.flatten(boot, toy_spec(), paths, tmp_path / "flat.img")


@pytest.mark.parametrize("name", ["kernel", "initramfs"])
async def test_a_file_that_boots_the_image_and_was_replaced_is_named(storage, boot, name):
    await storage.check_image(boot)
    path = getattr(boot, name)
    path.write_bytes(bytes(path.stat().st_size))  # of the same size
    with pytest.raises(HostLacksError, match=path.name) as raised:
        await storage.check_image(boot)
    assert raised.value.hint == "banger image build debian --force"


async def test_a_work_disk_grows_and_passes_with_its_new_size_and_less(
    storage, driver, boot, paths
):
    """Less: a daemon may end after it has grown a disk and before it has written that down."""
    await storage.create(boot, toy_spec(), paths, driver)
    with pytest.raises(HostLacksError):
        await storage.check(boot, toy_spec(work_bytes=128 * MIB), paths)
    await storage.grow_work(paths, 128 * MIB)
    await storage.check(boot, toy_spec(work_bytes=128 * MIB), paths)
    await storage.check(boot, toy_spec(), paths)
    with pytest.raises(HostLacksError):
        await storage.check(boot, toy_spec(work_bytes=192 * MIB), paths)


async def test_growing_to_the_same_size_is_fine(storage, driver, boot, paths):
    await storage.create(boot, toy_spec(), paths, driver)
    await storage.grow_work(paths, 64 * MIB)
    await storage.check(boot, toy_spec(), paths)


async def test_a_work_disk_does_not_shrink(storage, driver, boot, paths):
    await storage.create(boot, toy_spec(work_bytes=128 * MIB), paths, driver)
    with pytest.raises(RefusedError, match="shrink"):
        await storage.grow_work(paths, 64 * MIB)
    await storage.check(boot, toy_spec(work_bytes=128 * MIB), paths)


async def test_growing_a_lost_work_disk_names_it(storage, paths):
    with pytest.raises(HostLacksError, match=r"work\.img"):
        await storage.grow_work(paths, 128 * MIB)


async def test_deleting_may_be_repeated_and_takes_only_the_disks(storage, driver, boot, paths):
    await storage.create(boot, toy_spec(), paths, driver)
    paths.console_log.write_text("kept")
    await storage.delete(paths)
    await storage.delete(paths)
    assert left(paths) == ["console.log"]


async def test_a_failed_create_leaves_nothing(storage, driver, boot, paths, monkeypatch):
    if isinstance(storage, FakeStorage):
        storage.free_bytes = 0
    else:
        boot.work_seed.write_bytes(
            bytes(64 * MIB)
        )  # no ext4: resize2fs fails after both files were made
    with pytest.raises(BangerError):
        await storage.create(boot, toy_spec(work_bytes=128 * MIB), paths, driver)
    assert left(paths) == []
