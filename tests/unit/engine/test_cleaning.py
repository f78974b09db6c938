"""What may be removed: only what nothing uses, and only what is surely ours and old."""

import os
import time

import pytest

from banger.engine.cleaning import OLD_S, Cleaning, Wish
from banger.engine.image_work import ImageWork
from banger.host import fs
from tests.framework.fake_world import IMAGE
from tests.unit.engine.test_engine import make

EVERYTHING = Wish(images=True, databases=True)


@pytest.fixture
async def cleaning(engine):
    work = ImageWork(engine)
    yield Cleaning(engine, work, "debian")
    await work.close()


@pytest.fixture
def orphan(world):
    """What a deletion that was cut off left of a VM."""
    path = world.places.state_dir / "vms" / ("e" * 12)
    path.mkdir()
    (path / "work.img").write_bytes(b"x" * 9000)
    age(path)
    return path


def age(path, seconds=OLD_S + 60):
    then = time.clock_gettime(time.CLOCK_REALTIME) - seconds
    for one in (*path.iterdir(), path):
        os.utime(one, (then, then), follow_symlinks=False)


async def found(cleaning, wish=EVERYTHING):
    return [item.leftover.path for item in await cleaning.prune(wish, dry_run=True)]


async def test_a_clean_host_has_nothing_to_remove(cleaning, engine):
    await make(engine)
    assert await cleaning.prune(EVERYTHING, dry_run=False) == []


async def test_an_old_directory_without_a_record_goes_and_a_dry_run_leaves_it(cleaning, orphan):
    (item,) = await cleaning.prune(Wish(), dry_run=True)
    assert (item.leftover.kind, item.leftover.path, item.removed) == ("vm", orphan, False)
    assert item.leftover.size_bytes >= 9000
    assert orphan.exists()
    (item,) = await cleaning.prune(Wish(), dry_run=False)
    assert item.removed
    assert not orphan.exists()


async def test_what_builds_have_downloaded_goes(cleaning, engine):
    cache = engine.context.images.directory / "cache"
    cache.mkdir()
    (item,) = await cleaning.prune(Wish(), dry_run=True)
    assert (item.leftover.kind, item.leftover.path, item.leftover.size_bytes) == ("cache", cache, 8192)  # fmt: skip
    (item,) = await cleaning.prune(Wish(), dry_run=False)
    assert item.removed
    assert not cache.exists()


def is_young(path):
    age(path, OLD_S / 2)


def has_a_record_to_come_back_from(path):
    (path / "vm.json").write_text("{}")
    age(path)


def has_something_of_somebody_else(path):
    (path / "thesis.tex").write_text("")
    age(path)


def is_a_link(path):
    elsewhere = path.parent.parent / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def is_not_called_as_a_vm(path):
    path.rename(path.parent / "backup")


@pytest.mark.parametrize(
    "change",
    [is_young, has_a_record_to_come_back_from, has_something_of_somebody_else, is_a_link, is_not_called_as_a_vm],
    ids=lambda change: change.__name__,
)  # fmt: skip
async def test_a_directory_stays_that(cleaning, orphan, change):
    change(orphan)
    assert await found(cleaning) == []


async def test_a_directory_of_which_the_ledger_knows_stays(cleaning, engine, orphan):
    engine.context.store.intend(orphan.name, "disks")
    assert await found(cleaning) == []


async def test_a_directory_that_comes_to_be_used_meanwhile_stays(cleaning, orphan, monkeypatch):
    listed = await cleaning._leftovers(Wish())
    (orphan / "vm.json").write_text("{}")
    for _, remove in listed:
        await remove()
    assert orphan.exists()


async def test_rests_of_builds_go(cleaning, world):
    rest = world.directory / "images" / ".build-1"
    rest.mkdir(parents=True)
    (item,) = await cleaning.prune(Wish(), dry_run=False)
    assert (item.leftover.kind, item.leftover.name) == ("build", ".build-1")
    assert not rest.exists()


async def test_images_go_only_if_asked_unused_and_not_the_default(cleaning, engine):
    from dataclasses import replace

    images = engine.context.images.images
    for number, name in enumerate(["spare", "used"]):
        image_id = f"{number:012x}"
        images[image_id] = replace(IMAGE, id=image_id, name=name)
    engine.create("one", "used", (await _spec()), start=False, ready_s=None)
    assert await found(cleaning, Wish()) == []
    (item,) = await cleaning.prune(Wish(images=True), dry_run=False)
    assert (item.leftover.kind, item.leftover.name, item.removed) == ("image", "spare", True)
    assert {image.name for image in images.values()} == {"debian", "used"}


async def _spec():
    from banger.model.spec import VmSpec

    return VmSpec(image="used", disk_bytes=1 << 30)


async def test_damaged_databases_go_only_if_asked(cleaning, world):
    kept = world.places.state_dir / "banger.db.corrupt-2026"
    kept.write_bytes(b"x")
    assert await found(cleaning, Wish(images=True)) == []
    (item,) = await cleaning.prune(Wish(databases=True), dry_run=False)
    assert (item.leftover.kind, item.removed, kept.exists()) == ("database", True, False)


async def test_what_cannot_be_removed_is_told_and_keeps_nothing_else(
    cleaning, orphan, world, monkeypatch
):
    kept = world.places.state_dir / "banger.db.corrupt-2026"
    kept.write_bytes(b"x")

    def refuse(path):
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(fs, "remove_tree", refuse)
    vm, database = await cleaning.prune(Wish(databases=True), dry_run=False)
    assert (vm.removed, database.removed) == (False, True)
    assert "not permitted" in vm.error.detail
    assert vm.error.hint
    monkeypatch.undo()


async def test_usage_names_vms_images_and_the_rest(cleaning, engine, world):
    await make(engine)
    usage = await cleaning.usage()
    assert {(item.owner.kind, item.owner.name) for item in usage.items} >= {
        ("vm", "one"),
        ("image", "debian"),
    }
