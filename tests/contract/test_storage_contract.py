"""What storage promises (`engine.ports.Storage`): one suite for the fake and for real disks of small images, in both formats of root disks."""

import pytest

from banger.model.errors import BangerError, HostLacksError, InvalidInputError, RefusedError
from banger.model.machine import DiskFormat, RootDisk
from banger.model.units import MIB
from banger.storage.disks import DiskStorage
from banger.storage.root import path_of
from tests.framework.fakes.storage import FakeStorage
from tests.framework.toy import toy_image, toy_spec, vm_paths


@pytest.fixture(params=[FakeStorage, DiskStorage])
def storage(request):
    return request.param()


@pytest.fixture(params=list(DiskFormat))
def root(request):
    return request.param


@pytest.fixture
def boot(tmp_path):
    return toy_image(tmp_path / "image")


@pytest.fixture
def paths(tmp_path):
    return vm_paths(tmp_path)


def left(paths):
    return sorted(path.name for path in paths.state.iterdir())


async def test_disks_that_were_made_pass_their_check(storage, root, boot, paths):
    assert await storage.create(boot, toy_spec(), paths, root)
    assert storage.root(paths) == RootDisk(path_of(paths, root), root)
    assert left(paths) == [path_of(paths, root).name, "work.img"]
    await storage.check(boot, toy_spec(), paths)


async def test_disks_may_be_larger_than_the_images(storage, root, boot, paths):
    spec = toy_spec(disk_bytes=300 * MIB, work_bytes=200 * MIB)
    await storage.create(boot, spec, paths, root)
    await storage.check(boot, spec, paths)


@pytest.mark.parametrize(
    ("changes", "option"),
    [({"disk_bytes": 64 * MIB}, "--disk-size"), ({"work_bytes": 64 * MIB}, "--work-size")],
)
async def test_a_size_below_the_images_is_refused_with_the_least(
    storage, root, tmp_path, paths, changes, option
):
    boot = toy_image(tmp_path / "big", seed_bytes=80 * MIB, rootfs_bytes=80 * MIB)
    spec = toy_spec(**{"disk_bytes": 128 * MIB, "work_bytes": 128 * MIB, **changes})
    with pytest.raises(InvalidInputError) as raised:
        await storage.create(boot, spec, paths, root)
    assert option in raised.value.hint
    assert "80M" in raised.value.hint
    assert left(paths) == []


async def test_disks_that_are_there_are_not_replaced(storage, root, boot, paths):
    await storage.create(boot, toy_spec(), paths, root)
    path_of(paths, root).unlink()
    before = paths.work.read_bytes()
    with pytest.raises(RefusedError, match=r"work\.img"):
        await storage.create(boot, toy_spec(), paths, root)
    assert paths.work.read_bytes() == before
    assert left(paths) == ["work.img"]


@pytest.mark.parametrize("name", ["overlay", "work"])
async def test_a_lost_disk_is_named_with_a_next_step(storage, root, boot, paths, name):
    await storage.create(boot, toy_spec(), paths, root)
    path = paths.work if name == "work" else path_of(paths, root)
    path.unlink()
    with pytest.raises(HostLacksError, match=name) as raised:
        await storage.check(boot, toy_spec(), paths)
    assert f"banger vm delete {paths.state.name}" in raised.value.hint


@pytest.mark.parametrize("name", ["overlay", "work"])
async def test_an_emptied_disk_is_named(storage, root, boot, paths, name):
    await storage.create(boot, toy_spec(), paths, root)
    path = paths.work if name == "work" else path_of(paths, root)
    path.write_bytes(b"")
    with pytest.raises(HostLacksError, match=path.name):
        await storage.check(boot, toy_spec(), paths)


async def test_an_overlay_of_another_image_is_refused(storage, boot, paths, tmp_path):
    await storage.create(boot, toy_spec(), paths, DiskFormat.QCOW2)
    with pytest.raises(HostLacksError, match="overlay"):
        await storage.check(toy_image(tmp_path / "other"), toy_spec(), paths)


async def test_there_is_no_root_disk_before_and_after(storage, root, boot, paths):
    assert storage.root(paths) is None
    await storage.create(boot, toy_spec(), paths, root)
    await storage.delete(paths)
    assert storage.root(paths) is None


async def test_a_vm_gets_one_root_disk_whatever_its_format(storage, root, boot, paths):
    await storage.create(boot, toy_spec(), paths, root)
    (other,) = set(DiskFormat) - {root}
    with pytest.raises(RefusedError, match="there already"):
        await storage.create(boot, toy_spec(), paths, other)


async def test_a_whole_image_passes(storage, boot):
    await storage.check_image(boot)


@pytest.mark.parametrize("name", ["kernel", "initramfs", "rootfs", "work_seed"])
async def test_a_missing_or_cut_file_of_the_image_is_named(storage, boot, name):
    path = getattr(boot, name)
    with path.open("ab") as file:
        file.truncate(path.stat().st_size - 1)
    for _ in range(2):
        with pytest.raises(HostLacksError, match=path.name) as raised:
            await storage.check_image(boot)
        assert raised.value.hint == "banger image build debian --force"
        path.unlink(missing_ok=True)


@pytest.mark.parametrize("name", ["kernel", "initramfs"])
async def test_a_file_that_boots_the_image_and_was_replaced_is_named(storage, boot, name):
    await storage.check_image(boot)
    path = getattr(boot, name)
    path.write_bytes(bytes(path.stat().st_size))  # of the same size
    with pytest.raises(HostLacksError, match=path.name) as raised:
        await storage.check_image(boot)
    assert raised.value.hint == "banger image build debian --force"


async def test_a_work_disk_grows_and_passes_with_its_new_size_and_less(storage, root, boot, paths):
    """Less: a daemon may end after it has grown a disk and before it has written that down."""
    await storage.create(boot, toy_spec(), paths, root)
    with pytest.raises(HostLacksError):
        await storage.check(boot, toy_spec(work_bytes=128 * MIB), paths)
    await storage.grow_work(paths, 128 * MIB)
    await storage.check(boot, toy_spec(work_bytes=128 * MIB), paths)
    await storage.check(boot, toy_spec(), paths)
    with pytest.raises(HostLacksError):
        await storage.check(boot, toy_spec(work_bytes=192 * MIB), paths)


async def test_growing_to_the_same_size_is_fine(storage, root, boot, paths):
    await storage.create(boot, toy_spec(), paths, root)
    await storage.grow_work(paths, 64 * MIB)
    await storage.check(boot, toy_spec(), paths)


async def test_a_work_disk_does_not_shrink(storage, root, boot, paths):
    await storage.create(boot, toy_spec(work_bytes=128 * MIB), paths, root)
    with pytest.raises(RefusedError, match="shrink"):
        await storage.grow_work(paths, 64 * MIB)
    await storage.check(boot, toy_spec(work_bytes=128 * MIB), paths)


async def test_growing_a_lost_work_disk_names_it(storage, paths):
    with pytest.raises(HostLacksError, match=r"work\.img"):
        await storage.grow_work(paths, 128 * MIB)


async def test_deleting_may_be_repeated_and_takes_only_the_disks(storage, root, boot, paths):
    await storage.create(boot, toy_spec(), paths, root)
    paths.console_log.write_text("kept")
    await storage.delete(paths)
    await storage.delete(paths)
    assert left(paths) == ["console.log"]


async def test_a_failed_create_leaves_nothing(storage, root, boot, paths, monkeypatch):
    if isinstance(storage, FakeStorage):
        storage.free_bytes = 0
    else:
        boot.work_seed.write_bytes(
            bytes(64 * MIB)
        )  # no ext4: resize2fs fails after both files were made
    with pytest.raises(BangerError):
        await storage.create(boot, toy_spec(work_bytes=128 * MIB), paths, root)
    assert left(paths) == []
