"""The catalog: names, ids, what is up to date, what is swept. Builds are replaced by a function that writes five small files."""

import asyncio
from dataclasses import replace

import msgspec
import pytest

from banger.host import fs
from banger.host.locks import FileLock
from banger.images import build as build_module
from banger.images import workshop as workshop_module
from banger.images.build import FILES, inputs_digest
from banger.images.catalog import ImageCatalog
from banger.images.recipe import load_recipe
from banger.images.seal import image_id
from banger.model.errors import HostLacksError, InvalidInputError, NotFoundError, RefusedError
from banger.model.manifest import FileEntry, ImageManifest


class Builds:
    """Stands in for Build.run; ``content`` is what the next image is made of."""

    def __init__(self):
        self.count, self.content, self.error, self.hold = 0, b"one", None, None

    async def run(self, build):
        self.count += 1
        (build.work / "scratch").write_bytes(b"x")
        if self.hold is not None:
            self.hold.set()
            await asyncio.Event().wait()
        if self.error:
            raise self.error
        for name in FILES:
            (build.work / name).write_bytes(self.content)
        (build.work / "scratch").unlink()
        entry = FileEntry(len(self.content), fs.sparse_digest(build.work / FILES[0]))
        manifest = ImageManifest(
            "", build.name, "debian", "bookworm", "amd64", f"2026-01-01T00:00:{self.count:02}.000Z",
            inputs_digest(build.loaded, build.mirror), 8 << 30, "6.1", "rw", dict.fromkeys(FILES, entry),
            recipe=build.ref, kernel_digest=entry.digest,
        )  # fmt: skip
        manifest = replace(manifest, id=image_id(manifest))
        (build.work / "manifest.json").write_bytes(msgspec.json.encode(manifest))
        return manifest


@pytest.fixture
def builds(monkeypatch):
    made = Builds()
    monkeypatch.setattr(build_module.Build, "run", lambda build: made.run(build))  # noqa: PLW0108  a method, not a bound one

    async def remove(path):
        fs.remove_tree(path)

    monkeypatch.setattr(workshop_module, "remove_mapped", remove)
    return made


@pytest.fixture
def catalog(tmp_path):
    return ImageCatalog(tmp_path / "images", tmp_path / "logs")


def quiet(stage, detail):
    pass


async def make(catalog, name=None, *, force=False):
    return await catalog.build("debian", name=name, force=force, progress=quiet)


def entries(catalog):
    return sorted(path.name for path in catalog._dir.iterdir() if path.name != ".lock")


async def test_an_image_is_found_by_name_id_and_prefix(catalog, builds):
    made = await make(catalog)
    assert entries(catalog) == [made.id]
    assert catalog.get("debian") == catalog.get(made.id) == catalog.get(made.id[:4]) == made
    assert catalog.list() == [made]
    stack = catalog.boot_stack(made.id)
    assert stack.manifest == made
    assert all(
        path.is_file() for path in (stack.kernel, stack.initramfs, stack.rootfs, stack.work_seed)
    )
    assert catalog.allocated_bytes(made.id) > 0


async def test_another_catalog_reads_what_this_one_wrote(catalog, builds):
    made = await make(catalog)
    assert ImageCatalog(catalog._dir, catalog._logs).list() == [made]


async def test_what_is_not_there_is_said_with_the_command_that_makes_it(catalog):
    assert catalog.list() == []
    with pytest.raises(NotFoundError) as raised:
        catalog.get("debian")
    assert raised.value.hint == "banger image build debian"
    with pytest.raises(NotFoundError, match="gone or damaged"):
        catalog.boot_stack("0" * 12)
    with pytest.raises(NotFoundError):
        catalog.get("")


async def test_an_unchanged_recipe_is_not_built_again_unless_forced(catalog, builds):
    first = await make(catalog)
    said = []
    again = await catalog.build(
        "debian", name=None, force=False, progress=lambda *words: said.append(words)
    )
    assert (again, builds.count) == (first, 1)
    assert said[-1] == ("resolve", "debian is up to date")
    await make(catalog, force=True)
    assert builds.count == 2


async def test_a_damaged_image_is_built_again(catalog, builds):
    first = await make(catalog)
    (catalog._dir / first.id / "vmlinux").unlink()
    await make(catalog)
    assert builds.count == 2


async def test_a_forced_build_mends_what_somebody_replaced_and_leaves_the_rest(catalog, builds):
    first = await make(catalog)
    directory = catalog._dir / first.id
    (directory / "vmlinux").write_bytes(b"two")
    (directory / "initramfs.img").unlink()
    kept = (directory / "rootfs.img").stat().st_ino
    assert (await make(catalog, force=True)).id == first.id
    assert {(directory / name).read_bytes() for name in FILES} == {b"one"}
    assert (directory / "rootfs.img").stat().st_ino == kept
    assert entries(catalog) == [first.id]


async def test_an_image_knows_the_command_that_mends_it(catalog, builds, tmp_path):
    assert (await make(catalog)).remedy == "banger image build debian --force"
    assert (await make(catalog, "mine")).remedy == "banger image build debian --name mine --force"
    older = replace(await make(catalog), recipe="")
    assert older.remedy == "banger image build debian --force"
    path = replace(older, recipe="/my recipes/x.toml", name="x")
    assert path.remedy == "banger image build '/my recipes/x.toml' --name x --force"
    assert "image register --name x --replace" in replace(path, inputs_digest="").remedy


async def test_what_follows_from_the_files_is_no_part_of_the_id(catalog, builds):
    made = await make(catalog)
    assert image_id(replace(made, recipe="other", kernel_digest="", pvh=False)) == made.id
    assert image_id(replace(made, cmdline="ro")) != made.id


async def test_equal_bytes_keep_the_id_and_other_bytes_take_the_name(catalog, builds):
    first = await make(catalog)
    assert (await make(catalog, force=True)).id == first.id
    assert entries(catalog) == [first.id]
    builds.content = b"two"
    second = await make(catalog, force=True)
    assert second.id != first.id
    assert catalog.get("debian").id == second.id
    assert catalog.get(first.id).name == f"debian-{first.id}"
    assert catalog.boot_stack(first.id).rootfs.read_bytes() == b"one"


async def test_an_older_image_that_comes_out_again_has_its_name_back(catalog, builds):
    first = await make(catalog)
    builds.content = b"two"
    second = await make(catalog, force=True)
    builds.content = b"one"
    assert (await make(catalog, force=True)).id == first.id
    assert catalog.get("debian").id == first.id
    assert catalog.get(second.id).name == f"debian-{second.id}"


async def test_equal_bytes_under_two_names_are_two_images(catalog, builds):
    one, other = await make(catalog), await make(catalog, "mine")
    assert catalog.get("debian") == one
    assert catalog.get("mine") == other


async def test_a_very_long_name_can_be_replaced_too(catalog, builds):
    name = "a" * 63
    first = await make(catalog, name)
    builds.content = b"two"
    await make(catalog, name, force=True)
    assert len(catalog.get(first.id).name) <= 63


async def test_a_prefix_of_two_is_refused(catalog, builds):
    one = await make(catalog)
    for number in range(40):
        builds.content = bytes([number])
        await make(catalog, force=True)
    shared = next(
        prefix
        for prefix in "0123456789abcdef"
        if sum(m.id.startswith(prefix) for m in catalog.list()) > 1
    )
    with pytest.raises(InvalidInputError, match="not unique"):
        catalog.get(shared)
    assert catalog.get(one.id).id == one.id


async def test_a_failed_build_leaves_nothing_and_names_its_log(catalog, builds):
    builds.error = RuntimeError("the mirror burned down")
    with pytest.raises(HostLacksError, match="the mirror burned down") as raised:
        await make(catalog)
    assert entries(catalog) == []
    assert raised.value.hint == f"less {catalog._logs}/image-debian.log"


async def test_a_cancelled_build_leaves_nothing(catalog, builds):
    builds.hold = asyncio.Event()
    task = asyncio.create_task(make(catalog))
    await builds.hold.wait()
    assert len(entries(catalog)) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert entries(catalog) == []
    builds.hold = None
    await make(catalog)  # the lock is free again


async def test_a_second_build_at_the_same_time_is_refused(catalog, builds, tmp_path):
    builds.hold = asyncio.Event()
    task = asyncio.create_task(make(catalog))
    await builds.hold.wait()
    with pytest.raises(RefusedError, match="another image build"):
        await make(ImageCatalog(tmp_path / "images", tmp_path / "logs"))
    await catalog.sweep()  # leaves the running build alone
    assert len(entries(catalog)) == 1
    task.cancel()
    await asyncio.wait({task})


async def test_what_a_killed_build_or_deletion_left_is_swept(catalog, builds):
    kept = await make(catalog)
    (catalog._dir / ".build-12345678" / "tree").mkdir(parents=True)
    (catalog._dir / ("0" * 12)).mkdir()
    (catalog._dir / ("0" * 12) / "rootfs.img").write_bytes(b"x")
    (catalog._dir / "mine").mkdir()  # not ours to judge
    await catalog.sweep()
    assert entries(catalog) == sorted([kept.id, "mine"])


async def test_sweeping_where_nothing_was_ever_built_does_nothing(catalog):
    await catalog.sweep()
    assert not catalog._dir.exists()


async def test_too_little_space_is_said_before_anything_is_done(catalog, builds, monkeypatch):
    monkeypatch.setattr(fs, "free_bytes", lambda path: 1 << 30)
    with pytest.raises(HostLacksError, match="no space to build") as raised:
        await make(catalog)
    assert "1G are free, 3G are needed" in raised.value.detail
    assert builds.count == 0
    assert entries(catalog) == []
    lock = FileLock(catalog._dir / ".lock")
    assert lock.acquire()
    lock.release()


async def test_a_damaged_manifest_hides_its_image(catalog, builds):
    made = await make(catalog)
    (catalog._dir / made.id / "manifest.json").write_text("{")
    assert catalog.list() == []


def test_a_recipe_is_checked_without_building(catalog):
    catalog.check_recipe("debian", name="mine")
    with pytest.raises(InvalidInputError):
        catalog.check_recipe("debian", name="No Name")
    with pytest.raises(NotFoundError):
        catalog.check_recipe("nonesuch", name=None)


def test_the_inputs_digest_changes_with_every_input(monkeypatch):
    loaded = load_recipe("debian")
    seen = {inputs_digest(loaded, None), inputs_digest(loaded, "file:/mirror")}
    seen.add(inputs_digest(msgspec.structs.replace(loaded, packages=["x"]), None))
    seen.add(inputs_digest(msgspec.structs.replace(loaded, disk_bytes=1), None))
    files = build_module.payload_files(loaded)
    monkeypatch.setattr(
        build_module, "payload_files", lambda *_: {**files, "usr/lib/banger/agent.pyz": b"new"}
    )
    seen.add(inputs_digest(loaded, None))
    assert len(seen) == 5
    monkeypatch.undo()
    assert inputs_digest(loaded, None) in seen
