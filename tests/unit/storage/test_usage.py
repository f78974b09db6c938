"""What takes how much: by owner, links and shared blocks counted once, bounded in time."""

import os

import pytest

from banger.host import extents
from banger.host.extents import Extent
from banger.model.units import MIB
from banger.model.usage import Owner
from banger.storage.usage import measure

IMAGE = Owner("image", "d" * 12, "debian")
ONE, TWO = Owner("vm", "a" * 12, "one"), Owner("vm", "b" * 12, "two")


def write(path, size_bytes, *, length=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(os.urandom(size_bytes))
        if length is not None:
            file.truncate(length)
        file.flush()
        os.fsync(file.fileno())


@pytest.fixture
def state(tmp_path):
    write(tmp_path / "images" / IMAGE.id / "rootfs.img", 3 * MIB, length=64 * MIB)
    write(tmp_path / "images" / IMAGE.id / "manifest.json", 100)
    write(tmp_path / "vms" / ONE.id / "work.img", 2 * MIB)
    (tmp_path / "vms" / TWO.id).mkdir()
    write(tmp_path / "images" / ".build-1" / "deep" / "rest", MIB)
    write(tmp_path / "banger.db", MIB)
    return tmp_path


def owners(state):
    return {
        state / "images" / IMAGE.id: IMAGE,
        state / "vms" / ONE.id: ONE,
        state / "vms" / TWO.id: TWO,
    }


def by_name(usage):
    return {item.owner.name: item for item in usage.items}


def test_everything_is_somebodys_and_the_sum_is_that_of_the_parts(state):
    usage = measure(state, owners(state))
    items = by_name(usage)
    assert set(items) == {"debian", "one", "two", "images/.build-1", "banger.db"}
    assert items["debian"].logical_bytes == 64 * MIB + 100
    assert 3 * MIB <= items["debian"].allocated_bytes < 4 * MIB
    assert items["two"].allocated_bytes == 0
    assert items["images/.build-1"].owner.kind == "other"
    assert usage.used_bytes == sum(item.allocated_bytes for item in usage.items)
    (place,) = usage.file_systems
    assert 0 < place.free_bytes < place.size_bytes


def test_a_file_of_two_names_is_shared_and_counted_once(state):
    os.link(state / "vms" / ONE.id / "work.img", state / "vms" / TWO.id / "work.img")
    usage = measure(state, owners(state))
    items = by_name(usage)
    for name in ("one", "two"):
        assert items[name].allocated_bytes == 2 * MIB
        assert items[name].own_bytes == 0
    assert usage.used_bytes == sum(i.allocated_bytes for i in usage.items) - 2 * MIB


def test_shared_blocks_are_told_from_own_ones_and_counted_once(state, monkeypatch):
    """By a file system of which one MiB lies in both VMs and the image."""

    def of(descriptor, stop):
        size = os.fstat(descriptor).st_blocks * 512
        base = os.fstat(descriptor).st_ino << 40
        shared = Extent((1 << 30, (1 << 30) + MIB), shared=True)
        return [shared, Extent((base, base + size - MIB), shared=False)]

    monkeypatch.setattr(extents, "of", of)
    write(state / "vms" / TWO.id / "work.img", 3 * MIB)
    without = {key: value for key, value in owners(state).items() if value != IMAGE}
    usage = measure(state, without, deadline_s=60)
    items = by_name(usage)
    assert (items["one"].shared_bytes, items["one"].own_bytes) == (MIB, MIB)
    assert (items["two"].shared_bytes, items["two"].own_bytes) == (MIB, 2 * MIB)
    assert usage.exact
    sharers = [i for i in usage.items if i.shared_bytes]
    allocated = sum(item.allocated_bytes for item in usage.items)
    assert usage.used_bytes == allocated - MIB * (len(sharers) - 1)


def test_at_the_deadline_sums_are_upper_bounds_and_say_so(state):
    usage = measure(state, owners(state), deadline_s=0)
    items = by_name(usage)
    assert not usage.exact
    assert items["one"].own_bytes is None
    assert items["two"].own_bytes == 0  # nothing needs to be asked of it
    assert usage.used_bytes == sum(item.allocated_bytes for item in usage.items)


def test_links_are_not_followed_and_what_cannot_be_read_is_counted_all_the_same(state, tmp_path):
    (state / "vms" / TWO.id / "link").symlink_to(state / "images" / IMAGE.id / "rootfs.img")
    (state / "vms" / TWO.id / "up").symlink_to(state)
    os.mkfifo(state / "vms" / TWO.id / "pipe")
    assert by_name(measure(state, owners(state)))["two"].allocated_bytes == 0


def test_images_that_are_kept_elsewhere_are_counted(state, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "images"
    (state / "images").rename(elsewhere)
    (state / "images").symlink_to(elsewhere)
    assert by_name(measure(state, owners(state)))["debian"].allocated_bytes >= 3 * MIB


def test_a_state_directory_that_is_empty_has_no_owner(tmp_path):
    usage = measure(tmp_path, {})
    assert (usage.items, usage.used_bytes, usage.exact) == ((), 0, True)
