"""The driver dm-snapshot on a kernel that has a device mapper: what a VM gets, that nothing leaks, and that a full store is no lost one.

Few machines of tests have one: a test host does (`scripts/testhost.sh -k dm`).
"""

import contextlib
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import pytest

from banger.host import dm, loop, probe
from banger.host.loop import Backing
from banger.model.errors import CommandFailedError, HostLacksError, RefusedError
from banger.model.machine import StorageDriver
from banger.model.units import MIB
from banger.storage import snapshot
from banger.storage.disks import DiskStorage
from banger.storage.snapshots.direct import uuid_stem
from banger.storage.snapshots.port import installation
from tests.framework.toy import toy_image, toy_spec, vm_paths

pytestmark = [pytest.mark.device_mapper, pytest.mark.timeout(300)]
SPEC = toy_spec()


@pytest.fixture(autouse=True)
def device_mapper():
    if not (answer := probe.device_mapper()):
        pytest.skip(answer.why)


@pytest.fixture
def boot(tmp_path):
    boot = toy_image(tmp_path / "image")
    with boot.rootfs.open("r+b") as file:
        file.seek(32 * MIB)
        file.write(os.urandom(4 * MIB))
    return boot


@pytest.fixture
async def storage():
    return DiskStorage("dm-snapshot")


@pytest.fixture
async def vm(tmp_path, storage, boot):
    """Makes VMs with a disk; whatever a test leaves open is closed."""
    made = []

    async def make(letter="a", place=tmp_path, spec=SPEC):
        paths = vm_paths(place, letter * 12)
        made.append(paths)
        await storage.create(boot, spec, paths, StorageDriver.DM_SNAPSHOT)
        return paths

    yield make
    for paths in made:
        await storage.close_root(paths)


def mappings():
    """By name, as dmsetup sees them: one without a table is in no directory of /sys."""
    argv = ["dmsetup", "info", "-c", "--noheadings", "--separator", "|", "-o", "minor,uuid,name"]
    done = subprocess.run(argv, check=True, capture_output=True, text=True)
    return {mapping.name: mapping for mapping in dm.parse_mappings(done.stdout)}


def names():
    return set(mappings())


def loops_over(path):
    found = path.stat()
    return loop.over(Backing(found.st_dev, found.st_ino))


def none_left(*paths):
    """The kernel lets go of files a moment after the last close."""
    end = time.monotonic() + 30
    while any(loops_over(path) for path in paths) and time.monotonic() < end:
        time.sleep(0.01)
    return not any(loops_over(path) for path in paths)


def write(device, offset, data):
    with open(device, "r+b", buffering=0) as file:
        os.pwrite(file.fileno(), data, offset)
        os.fsync(file.fileno())


def read(device, offset, count):
    with open(device, "rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        return os.pread(file.fileno(), count, offset)


async def test_auto_takes_it_where_blocks_cannot_be_shared(boot, vm, tmp_path):
    paths = await vm()
    formats = [StorageDriver.COPY.disk_format]
    choice = await DiskStorage().choose(boot, paths, "firecracker", formats)
    assert choice.driver in {StorageDriver.DM_SNAPSHOT, StorageDriver.REFLINK}
    assert (choice.driver is StorageDriver.REFLINK) == bool(probe.reflink(tmp_path))


async def test_a_disk_is_the_image_and_keeps_what_is_written_to_it(storage, boot, vm):
    paths, image = await vm(), boot.rootfs.read_bytes()
    data = os.urandom(2 * MIB)
    disk = await storage.open_root(boot, SPEC, paths)
    assert disk.device
    assert Path(disk.path).is_block_device()
    assert read(disk.path, 0, len(image)) == image
    write(disk.path, 33 * MIB, data)
    await storage.close_root(paths)
    assert names() == set()
    assert none_left(boot.rootfs, paths.overlay_cow)
    await storage.check(boot, SPEC, paths)
    disk = await storage.open_root(boot, SPEC, paths)
    assert read(disk.path, 33 * MIB, len(data)) == data
    assert read(disk.path, 0, 33 * MIB) == image[: 33 * MIB]
    assert boot.rootfs.read_bytes() == image


async def test_a_disk_that_is_larger_than_the_image_goes_on_with_zeros(storage, boot, vm):
    spec = toy_spec(disk_bytes=256 * MIB)
    paths = await vm(spec=spec)
    data = os.urandom(MIB)
    for _ in range(2):
        disk = await storage.open_root(boot, spec, paths)
        assert names() == {"banger-" + "a" * 12, "banger-" + "a" * 12 + "-base"}
        assert read(disk.path, 128 * MIB, MIB) == bytes(MIB)
        write(disk.path, 255 * MIB, data)
        assert read(disk.path, 255 * MIB, MIB) == data
        await storage.close_root(paths)
        assert names() == set()


async def test_vms_of_an_image_share_its_loop_device_and_it_goes_with_the_last(storage, boot, vm):
    first, second = await vm("a"), await vm("b")
    for paths in (first, second):
        await storage.open_root(boot, SPEC, paths)
        assert len(loops_over(boot.rootfs)) == 1
    write(dm_path(first), 0, b"x" * 4096)
    assert read(dm_path(second), 0, 4096) == boot.rootfs.read_bytes()[:4096]
    await storage.close_root(first)
    assert len(loops_over(boot.rootfs)) == 1
    await storage.close_root(second)
    assert none_left(boot.rootfs)


def dm_path(paths):
    return f"/dev/dm-{mappings()['banger-' + paths.state.name].number}"


@contextlib.contextmanager
def foreign(name, *more):
    subprocess.run(["dmsetup", "create", name, *more, "--table", "0 2048 zero"], check=True)
    try:
        yield
    finally:
        subprocess.run(["dmsetup", "remove", "--retry", name], check=True)


async def test_somebody_elses_mapping_with_our_name_is_left_alone(storage, boot, vm):
    paths = await vm()
    name = "banger-" + "a" * 12
    with foreign(name):
        with pytest.raises(RefusedError, match="in the way") as raised:
            await storage.open_root(boot, SPEC, paths)
        assert raised.value.hint == f"sudo dmsetup info {name}"
        await storage.close_root(paths)
        assert await storage.sweep(paths.state.parent, []) == []
        assert names() == {name}
    assert none_left(boot.rootfs, paths.overlay_cow)


async def test_another_installations_mapping_is_not_swept(storage, boot, vm, tmp_path):
    theirs, ours = await vm("a", tmp_path / "theirs"), await vm("b", tmp_path / "ours")
    for paths in (theirs, ours):
        await storage.open_root(boot, SPEC, paths)
    said = await storage.sweep(ours.state.parent, [])
    assert said == ["device banger-bbbbbbbbbbbb, whose VM does not run, was removed"]
    assert names() == {"banger-" + "a" * 12}


async def test_a_mapping_that_has_our_uuid_and_another_name_is_told_and_stays(storage, vm):
    paths = await vm()
    uuid = f"{uuid_stem(installation(paths.state.parent))}{'a' * 12}"
    with foreign("mine", "--uuid", uuid):
        (said,) = await storage.sweep(paths.state.parent, [])
        assert "left alone" in said
        assert names() == {"mine"}


@pytest.mark.parametrize("again", [True, False], ids=["started again", "swept"])
async def test_what_a_killed_daemon_left_is_taken_over_or_removed(storage, boot, vm, again):
    """And what was written before it was killed is there."""
    paths = await vm()
    disk = await storage.open_root(boot, SPEC, paths)
    data = os.urandom(4096)
    write(disk.path, 4096, data)
    other = DiskStorage()  # that of the next daemon
    if again:
        disk = await other.open_root(boot, SPEC, paths)
        assert read(disk.path, 4096, 4096) == data
    assert len(await other.sweep(paths.state.parent, [])) == 1
    assert names() == set()
    assert none_left(boot.rootfs, paths.overlay_cow)
    disk = await storage.open_root(boot, SPEC, paths)
    assert read(disk.path, 4096, 4096) == data


async def test_a_mapping_whose_maker_was_killed_before_it_had_a_table_is_no_obstacle(
    storage, boot, vm
):
    """It is not in /sys, but has its name."""
    paths = await vm()
    name, uuid = "banger-" + "a" * 12, f"{uuid_stem(installation(paths.state.parent))}{'a' * 12}"
    for _ in range(2):
        subprocess.run(["dmsetup", "create", name, "--uuid", uuid, "--notable"], check=True)
        await storage.open_root(boot, SPEC, paths)
        await storage.close_root(paths)
    subprocess.run(["dmsetup", "create", name, "--uuid", uuid, "--notable"], check=True)
    assert len(await storage.sweep(paths.state.parent, [])) == 1
    assert names() == set()


async def test_a_daemon_that_is_killed_at_any_moment_leaves_nothing_for_good(storage, boot, vm):
    paths = await vm()
    program = (
        "import asyncio, sys; sys.path.insert(0, '.')\n"
        "from pathlib import Path\n"
        "from banger.model.machine import BootStack, VmPaths\n"
        "from banger.storage.disks import DiskStorage\n"
        "from tests.framework.toy import toy_spec, _manifest\n"
        f"files = [Path(p) for p in {[str(p) for p in (boot.kernel, boot.initramfs, boot.rootfs, boot.work_seed)]!r}]\n"
        "boot = BootStack(*files, 'rw', _manifest(0, {}))\n"
        f"paths = VmPaths(Path({str(paths.state)!r}), Path('/nowhere'))\n"
        "async def main():\n"
        "    print('go', flush=True)\n"
        "    while True:\n"
        "        await DiskStorage().open_root(boot, toy_spec(), paths)\n"
        "        await DiskStorage().close_root(paths)\n"
        "asyncio.run(main())\n"
    )
    root = Path(__file__).parents[2]
    for number in range(6):
        with subprocess.Popen(
            [sys.executable, "-c", program], cwd=root, stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": f"{root / 'src'}"}, start_new_session=True,
        ) as process:  # fmt: skip
            assert process.stdout.readline() == b"go\n"
            time.sleep(0.05 + 0.07 * number)
            os.killpg(process.pid, signal.SIGKILL)
        await storage.sweep(paths.state.parent, [])
        assert names() == set()
        assert none_left(boot.rootfs, paths.overlay_cow)
        await storage.check(boot, SPEC, paths)


async def test_a_busy_mapping_is_tried_again_until_it_is_let_go(storage, boot, vm):
    paths = await vm()
    disk = await storage.open_root(boot, SPEC, paths)
    with open(disk.path, "rb") as held:
        sleeping = subprocess.Popen(["sleep", "0.6"], stdin=held)
    with sleeping:
        await storage.close_root(paths)
    assert names() == set()


async def test_one_that_stays_busy_is_an_error_with_a_next_step(storage, boot, vm):
    paths = await vm()
    disk = await storage.open_root(boot, SPEC, paths)
    (mapping,) = mappings().values()
    with open(disk.path, "rb"), pytest.raises(CommandFailedError) as raised:
        await dm.remove(mapping.uuid, timeout_s=0.3)
    assert raised.value.hint == f"sudo dmsetup info {mapping.name}"
    assert names() == {mapping.name}


async def test_the_store_grows_ahead_of_what_is_written_and_gives_back_the_rest(
    storage, boot, vm, monkeypatch
):
    monkeypatch.setattr(snapshot, "AHEAD_BYTES", 8 * MIB)
    paths = await vm()
    disk = await storage.open_root(boot, SPEC, paths)
    written = b""
    for number in range(10):
        data = os.urandom(6 * MIB)
        write(disk.path, number * 6 * MIB, data)
        written += data
        (fill,) = await storage.tend([paths])
        assert fill.trouble == ""
        assert fill.size_bytes - fill.used_bytes >= 8 * MIB or number == 9
        assert fill.size_bytes - fill.used_bytes <= 12 * MIB
        assert fill.used_bytes >= len(written)
    assert read(disk.path, 0, len(written)) == written
    assert paths.overlay_cow.stat().st_size <= dm.store_limit_bytes(SPEC.disk_bytes)
    await storage.close_root(paths)
    assert paths.overlay_cow.stat().st_size <= fill.used_bytes + 2 * MIB
    disk = await storage.open_root(boot, SPEC, paths)
    assert read(disk.path, 0, len(written)) == written


async def test_a_store_never_needs_more_than_its_limit(storage, boot, vm, monkeypatch):
    monkeypatch.setattr(snapshot, "AHEAD_BYTES", 16 * MIB)
    paths = await vm()
    disk = await storage.open_root(boot, SPEC, paths)
    data = os.urandom(64 * MIB)
    for offset in range(0, len(data), 8 * MIB):
        write(disk.path, offset, data[offset : offset + 8 * MIB])
        await storage.tend([paths])
    (fill,) = await storage.tend([paths])
    assert (fill.trouble, fill.size_bytes) == ("", dm.store_limit_bytes(SPEC.disk_bytes))
    assert read(disk.path, 0, len(data)) == data


@pytest.fixture
def small_disk(tmp_path):
    """A file system with 64 MiB."""
    image, where = tmp_path / "small.img", tmp_path / "small"
    where.mkdir()
    with image.open("wb") as file:
        file.truncate(80 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", image], check=True)
    subprocess.run(["mount", "-o", "loop", image, where], check=True)
    yield where
    subprocess.run(["umount", where], check=True)


async def test_where_it_cannot_grow_that_is_told_while_there_is_room_and_ends_with_the_cause(
    storage, boot, vm, small_disk, monkeypatch
):
    monkeypatch.setattr(snapshot, "AHEAD_BYTES", 16 * MIB)
    monkeypatch.setattr("banger.storage.disks.RESERVE_BYTES", 0)
    paths = await vm(place=small_disk)
    disk = await storage.open_root(boot, SPEC, paths)
    filler, free = small_disk / "filler", os.statvfs(small_disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - MIB)
    troubles = []
    for number in range(3):
        write(disk.path, number * 4 * MIB, os.urandom(4 * MIB))
        (fill,) = await storage.tend([paths])
        troubles.append(fill.trouble)
    assert troubles[0] == ""
    assert "cannot grow" in troubles[-1]
    assert "disk is full" in troubles[-1]
    assert fill.size_bytes > fill.used_bytes
    filler.unlink()
    (fill,) = await storage.tend([paths])
    assert fill.trouble == ""
    assert fill.size_bytes - fill.used_bytes >= 16 * MIB
    await storage.close_root(paths)


async def test_a_store_that_was_full_is_a_lost_disk_and_told_so(storage, boot, vm, monkeypatch):
    monkeypatch.setattr(snapshot, "AHEAD_BYTES", 4 * MIB)
    paths = await vm()
    disk = await storage.open_root(boot, SPEC, paths)
    with contextlib.suppress(OSError):
        write(disk.path, 0, os.urandom(16 * MIB))
    (fill,) = await storage.tend([paths])
    assert "lost" in fill.trouble
    await storage.close_root(paths)
    assert names() == set()
    with pytest.raises(HostLacksError, match=r"root disk of VM a+ is lost") as raised:
        await storage.check(boot, SPEC, paths)
    assert "banger vm delete" in raised.value.hint


async def test_how_long_it_takes(storage, boot, vm):
    paths, opened, closed = await vm(), [], []
    bare = []
    for _ in range(15):
        began = time.monotonic()
        subprocess.run(["dmsetup", "create", "bare", "--table", "0 2048 zero"], check=True)
        bare.append((time.monotonic() - began) * 1000)
        subprocess.run(["dmsetup", "remove", "bare"], check=True)
        began = time.monotonic()
        await storage.open_root(boot, SPEC, paths)
        opened.append((time.monotonic() - began) * 1000)
        began = time.monotonic()
        await storage.close_root(paths)
        closed.append((time.monotonic() - began) * 1000)
    print(f"dm-snapshot: made in {statistics.median(opened):.0f} ms, removed in {statistics.median(closed):.0f} ms; dmsetup create by hand: {statistics.median(bare):.0f} ms")  # fmt: skip
