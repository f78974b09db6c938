"""An image is deleted wholly, or is still whole: with an error, cancelled or killed between any two steps. What is left goes with the next
start, or another try.
"""

import asyncio

import msgspec
import pytest

from banger.host import fs
from banger.images.catalog import ImageCatalog
from banger.images.workshop import Workshop
from banger.model.errors import BangerError, HostLacksError, NotFoundError, RefusedError
from banger.model.manifest import FileEntry, ImageManifest
from tests.framework.killed import killed_at

MINE, OTHER = "a" * 12, "b" * 12
FILES = ("rootfs.img", "work-seed.img", "vmlinux", "initramfs.img")
STAGES = ("manifest", "files")


def quiet(_stage, _detail):
    pass


def put_image(directory, image_id, name):
    """A whole image with one file below a directory, which a deletion goes into."""
    place = directory / image_id
    (place / "more").mkdir(parents=True)
    for path in (*(place / file for file in FILES), place / "more" / "notes"):
        path.write_bytes(b"content")
        path.chmod(0o444)
    entry = FileEntry(7, fs.sparse_digest(place / "rootfs.img"))
    manifest = ImageManifest(
        image_id, name, "debian", "bookworm", "amd64", "2026-01-01T00:00:00.000Z", "0" * 64, 8 << 30, "6.1", "rw",
        dict.fromkeys(FILES, entry),
    )  # fmt: skip
    (place / "manifest.json").write_bytes(msgspec.json.encode(manifest))


@pytest.fixture
def catalog(tmp_path):
    return a_catalog(tmp_path)


def a_catalog(tmp_path):
    """The images of a daemon, two of them if there are none yet."""
    if not (tmp_path / "images").exists():
        put_image(tmp_path / "images", MINE, "mine")
        put_image(tmp_path / "images", OTHER, "other")
    return ImageCatalog(tmp_path / "images", tmp_path / "logs")


async def delete(catalog, image_id=MINE, *, unused=lambda: None, progress=quiet):
    await catalog.delete(image_id, unused=unused, progress=progress)


def files_of(catalog, image_id=MINE):
    place = catalog._dir / image_id
    return sorted(str(path.relative_to(place)) for path in place.rglob("*"))


WHOLE = sorted((*FILES, "manifest.json", "more", "more/notes"))


def whole_or_none(catalog):
    """Whether the image is there; then it is whole. The other one always is."""
    names = [image.name for image in catalog.list()]
    assert "other" in names
    assert files_of(catalog, OTHER) == WHOLE
    if "mine" in names:
        assert files_of(catalog) == WHOLE
    else:
        for ask in (catalog.get, catalog.by_id, catalog.boot_stack):
            with pytest.raises(NotFoundError):
                ask(MINE)
    return "mine" in names


async def goes_wholly(catalog):
    """The next try succeeds, and of the image there is nothing left."""
    await delete(catalog)
    assert not whole_or_none(catalog)
    assert sorted(path.name for path in catalog._dir.iterdir()) == [".lock", OTHER]
    assert catalog.half_deleted() == catalog.leftovers() == []


def failing(stage, error):
    """A progress that ends with ``error`` when ``stage`` begins: before its step, and after that of the one before."""

    def progress(name, _detail):
        if name == stage:
            raise error

    return progress


@pytest.mark.parametrize("error", [BangerError("odd"), TimeoutError(), asyncio.CancelledError()])
@pytest.mark.parametrize("stage", STAGES)
async def test_what_fails_or_is_cancelled_leaves_it_whole_or_is_finished_by_another_try(
    catalog, stage, error
):
    with pytest.raises(type(error)):
        await delete(catalog, progress=failing(stage, error))
    assert whole_or_none(catalog) is (stage == "manifest")
    assert catalog.half_deleted() == ([] if stage == "manifest" else [MINE])
    await goes_wholly(catalog)


@pytest.mark.parametrize("stage", STAGES)
async def test_what_a_deletion_that_broke_off_left_goes_with_the_next_start(
    catalog, tmp_path, stage
):
    with pytest.raises(BangerError):
        await delete(catalog, progress=failing(stage, BangerError("odd")))
    left = catalog.leftovers()
    await a_catalog(tmp_path).sweep()
    assert [path.name for path, _ in left] == ([] if stage == "manifest" else [MINE])
    assert (catalog._dir / MINE).exists() is (stage == "manifest")
    assert catalog.leftovers() == []


def test_kill_9_between_any_two_steps_leaves_it_whole_or_nothing_after_the_next_start(tmp_path):
    """The daemon is killed at its first, second, … step on a file, until it comes to the end."""
    number, there = 1, []
    while True:
        place = tmp_path / str(number)
        catalog = a_catalog(place)
        work = lambda catalog=catalog: asyncio.run(delete(catalog))  # noqa: E731
        if not killed_at(number, catalog._dir, work):
            break
        there.append(whole_or_none(a_catalog(place)))
        asyncio.run(a_catalog(place).sweep())
        again = a_catalog(place)
        assert whole_or_none(again) is there[-1]
        assert (again._dir / MINE).exists() is there[-1]
        assert again.leftovers() == []
        asyncio.run(goes_wholly(again))
        number += 1
    assert there == sorted(there, reverse=True)  # once it is none it stays none
    assert there.count(False) > len(FILES)
    assert there[0]


@pytest.mark.parametrize("step", ["manifest", "files"])
async def test_what_the_host_refuses_is_told_with_the_way_to_go_on(catalog, monkeypatch, step):
    def refuse(*_args, **_kwargs):
        raise PermissionError(1, "Operation not permitted", "rootfs.img")

    with monkeypatch.context() as patch:
        if step == "files":
            patch.setattr(fs.shutil, "rmtree", refuse)
        else:
            patch.setattr(type(catalog._dir), "unlink", refuse)
        with pytest.raises(HostLacksError, match="could not be deleted wholly") as raised:
            await delete(catalog)
    assert "rootfs.img" in raised.value.detail
    assert raised.value.hint == f"banger image delete {MINE}"
    assert whole_or_none(catalog) is (step == "manifest")
    await goes_wholly(catalog)


async def test_whether_it_is_unused_is_asked_when_nothing_can_come_in_between(catalog):
    said = []

    def used():
        said.append("asked")
        raise RefusedError("image mine is used", hint="banger vm list")

    with pytest.raises(RefusedError, match="is used"):
        await delete(catalog, unused=used, progress=lambda stage, _: said.append(stage))
    assert said == ["manifest", "asked"]
    assert whole_or_none(catalog)


async def test_while_it_goes_nobody_takes_it_for_a_rest_and_nobody_makes_an_image(
    catalog, tmp_path
):
    seen = []

    async def look(stage, _detail):
        other = Workshop(tmp_path / "images")
        await other.sweep()
        seen.append((stage, other.leftovers(), files_of(catalog) != []))
        with pytest.raises(RefusedError, match="another image build"):
            async with other.hold(0):
                pass

    await delete(catalog, progress=look)
    assert seen == [("manifest", [], True), ("files", [], True)]


async def test_it_waits_for_who_makes_an_image(catalog, tmp_path):
    async with Workshop(tmp_path / "images").hold(0):
        task = asyncio.create_task(delete(catalog))
        await asyncio.sleep(0.1)
        assert whole_or_none(catalog)
    await task
    assert not whole_or_none(catalog)


async def test_deleting_what_is_not_there_is_no_error(catalog):
    await delete(catalog)
    await goes_wholly(catalog)
