"""Work seeds: those that are not current are completed in the clone and renewed for the next VM, those that are lost are made again."""

import asyncio
import os
import shutil
import subprocess
from dataclasses import replace

import pytest

from banger.host import exec as host_exec
from banger.host import fs
from banger.images import home, seeds
from banger.images.catalog import ImageCatalog
from banger.images.seal import put_manifest, seal_file
from banger.images.seeds import SEED, superblock_trouble
from banger.model.errors import HostLacksError, NotFoundError, RefusedError
from banger.model.machine import StorageDriver
from banger.model.manifest import GIVEN, PAYLOAD, SEEDED
from banger.model.spec import VmSpec
from banger.model.units import GIB, MIB
from banger.storage.disks import DiskStorage
from tests.framework import toy_register as toy
from tests.framework.toy import vm_paths

HOME = {".bashrc": b"mine", ".profile": b"mine", "note": b"of the user"}


@pytest.fixture
def catalog(tmp_path):
    return ImageCatalog(tmp_path / "images", tmp_path / "logs")


def an_image(catalog, *, seed=HOME, ssh=True, **changes):
    """A toy image with a work seed of ``seed`` (with a .ssh unless told otherwise); ``changes`` of its manifest."""
    made = toy.base_image(catalog._dir)
    directory = catalog._dir / made.id
    (directory / SEED).unlink()
    toy.ext4(directory / SEED, seed, size_kib=64 << 10)
    shutil.rmtree(directory / f"{SEED}.tree")
    if ssh:
        subprocess.run(["/sbin/debugfs", "-w", "-R", "mkdir .ssh", directory / SEED], check=True, capture_output=True)  # fmt: skip
    files = {**made.files, SEED: seal_file(directory / SEED)}
    made = replace(made, **{"files": files, "payload": PAYLOAD, **changes})
    put_manifest(directory, made)
    return made, directory / SEED


def names(image, directory="/"):
    done = subprocess.run(["/sbin/debugfs", "-R", f"ls -p {directory}", image], check=True, capture_output=True, text=True)  # fmt: skip
    rows = [line.split("/") for line in done.stdout.splitlines() if line.startswith("/")]
    return {row[5]: row[2] for row in rows}


def content(image, path):
    return subprocess.run(["/sbin/debugfs", "-R", f"cat {path}", image], check=True, capture_output=True).stdout  # fmt: skip


def is_whole(image):
    subprocess.run(["/sbin/e2fsck", "-f", "-n", image], check=True, capture_output=True)


@pytest.fixture
def started(monkeypatch):
    """The programs that are started from now on."""
    found = []
    real = asyncio.create_subprocess_exec

    async def spy(*words, **options):
        found.append(os.path.basename(words[0]))
        return await real(*words, **options)

    monkeypatch.setattr(host_exec.asyncio, "create_subprocess_exec", spy)
    return found


async def make_disks(catalog, manifest, paths, work_bytes=GIB):
    """What the stage ``disks`` does."""
    seed = await catalog.seed(manifest.id)
    boot = catalog.boot_stack(manifest.id)
    spec = VmSpec(disk_bytes=64 * MIB, work_bytes=work_bytes)
    await DiskStorage().create(boot, spec, paths, StorageDriver.QCOW2)
    if not seed.current:
        await catalog.complete_home(paths.work, manifest.id)
    return seed


async def test_a_clone_of_a_current_seed_costs_no_program_but_the_root_disks_own(
    catalog, tmp_path, started
):
    """No mount, no debugfs, no resize2fs: qemu-img makes the root disk, and the guest grows the work disk."""
    manifest, seed = an_image(catalog)
    await catalog.refresh_seed(manifest.id)
    started.clear()
    paths = vm_paths(tmp_path)
    state = await make_disks(catalog, catalog.by_id(manifest.id), paths)
    assert state.current
    assert started == ["qemu-img"]
    assert paths.work.stat().st_size == GIB
    clone = paths.work.read_bytes()[: 64 * MIB]
    assert clone == seed.read_bytes()  # not a byte of it was written


async def test_of_an_image_whose_guests_cannot_grow_it_the_host_does(catalog, tmp_path, started):
    manifest, _ = an_image(catalog, payload=1)
    await make_disks(catalog, manifest, vm_paths(tmp_path))
    assert "resize2fs" in started


async def test_a_seed_of_an_older_banger_is_completed_in_the_clone_then_renewed(
    catalog, tmp_path, started
):
    manifest, seed = an_image(catalog, seed={"note": b"of the user"}, ssh=False)
    paths = vm_paths(tmp_path)
    assert catalog.seed_word(manifest) == "older"
    assert not (await make_disks(catalog, manifest, paths)).current
    assert "mount" not in started
    there = names(paths.work)
    assert there[".ssh"] == "040700"
    assert there[".bashrc"] == there[".profile"] == "100644"
    assert content(paths.work, "note") == b"of the user"
    assert ".ssh" not in names(seed)
    is_whole(paths.work)

    with seed.open("rb") as being_cloned:
        said = await catalog.refresh_seed(manifest.id)
        assert "added .ssh .bashrc .profile" in said
        assert len(being_cloned.read()) == 64 * MIB  # who has the old one open keeps it
    renewed = catalog.by_id(manifest.id)
    assert catalog.seed_word(renewed) == "current"
    assert renewed.history[-1].action == SEEDED
    assert renewed.id == manifest.id
    assert fs.sparse_digest(seed) == renewed.files[SEED].digest
    assert seed.stat().st_mode & 0o777 == 0o444
    assert {".ssh", ".bashrc", ".profile", "note"} <= set(names(seed))
    is_whole(seed)
    assert (await catalog.seed(manifest.id)).current
    assert await catalog.refresh_seed(manifest.id) == "is up to date"
    assert sorted(p.name for p in seed.parent.iterdir()) == sorted(
        [*renewed.files, "manifest.json"]
    )


async def test_what_a_home_has_is_left_as_it_is(catalog, tmp_path):
    manifest, _ = an_image(
        catalog, seed={".profile": b"mine", ".ssh": b"a file, whatever for"}, ssh=False
    )
    paths = vm_paths(tmp_path)
    await make_disks(catalog, manifest, paths)
    assert content(paths.work, ".profile") == b"mine"
    assert content(paths.work, ".ssh") == b"a file, whatever for"
    assert ".bashrc" not in names(paths.work)


async def test_a_seed_with_a_small_journal_gets_one_that_can_be_grown_over(catalog, tmp_path):
    manifest, seed = an_image(catalog)
    paths = vm_paths(tmp_path)
    await make_disks(catalog, manifest, paths)
    await catalog.refresh_seed(manifest.id)
    for disk in (paths.work, seed):
        done = subprocess.run(["/sbin/dumpe2fs", "-h", disk], check=True, capture_output=True, text=True)  # fmt: skip
        assert "Total journal size:       16M" in done.stdout
        is_whole(disk)


async def test_a_seed_whose_home_lies_in_root_is_flattened_when_it_is_renewed(catalog):
    nested = {
        "root/.bashrc": b"mine",
        "root/deep/note": b"below",
        "note": b"above",
        "root/note": b"below",
    }
    manifest, seed = an_image(catalog, seed=nested, ssh=False)
    await catalog.refresh_seed(manifest.id)
    assert {".bashrc", "deep", "note", "note.from-root", ".ssh"} <= set(names(seed))
    assert "root" not in names(seed)
    assert content(seed, "deep/note") == content(seed, "note.from-root") == b"below"
    assert content(seed, "note") == b"above"
    is_whole(seed)


@pytest.mark.parametrize("how", ["missing", "unstated", "cut", "zeros", "flipped"])
async def test_a_lost_seed_is_made_again_out_of_the_root(catalog, tmp_path, how):
    manifest, seed = an_image(catalog)
    seed.chmod(0o600)
    if how in {"missing", "unstated"}:
        seed.unlink()
    elif how == "cut":
        os.truncate(seed, 5 * MIB)
    else:
        with seed.open("r+b") as file:
            file.seek(0 if how == "zeros" else 40 * MIB)
            file.write(bytes(8 * MIB) if how == "zeros" else b"x")
    if how == "unstated":
        files = {name: entry for name, entry in manifest.files.items() if name != SEED}
        put_manifest(seed.parent, replace(manifest, files=files))
        assert catalog.seed_word(catalog.by_id(manifest.id)) == "none"
    paths = vm_paths(tmp_path)
    state = await make_disks(catalog, manifest, paths)
    assert state.current
    assert "made again" in state.detail
    assert content(paths.work, ".bashrc") == b"PS1=x\n"  # of the rootfs's /root
    assert ".ssh" in names(paths.work)
    is_whole(seed)
    now = catalog.by_id(manifest.id)
    assert fs.sparse_digest(seed) == now.files[SEED].digest
    assert (await catalog.seed(manifest.id)).detail == ""


async def test_a_damaged_seed_with_content_of_its_own_is_not_replaced(catalog):
    manifest, seed = an_image(catalog, seed_of=GIVEN)
    seed.chmod(0o600)
    with seed.open("r+b") as file:
        file.write(bytes(MIB))
    before = seed.read_bytes()
    with pytest.raises(HostLacksError, match="damaged") as raised:
        await catalog.seed(manifest.id)
    assert raised.value.hint == f"rm {seed}, then a seed is made of the image's own /root"
    assert seed.read_bytes() == before
    seed.unlink()
    assert "made again" in (await catalog.seed(manifest.id)).detail


async def test_a_root_that_is_damaged_too_gives_no_seed_and_leaves_nothing(catalog):
    manifest, seed = an_image(catalog)
    seed.unlink()
    rootfs = seed.with_name("rootfs.img")
    rootfs.chmod(0o600)
    with rootfs.open("r+b") as file:
        file.write(bytes(MIB))
    with pytest.raises(HostLacksError, match="damaged") as raised:
        await catalog.seed(manifest.id)
    assert raised.value.hint == f"e2fsck -f {rootfs}"
    assert not list(catalog._dir.glob(".build-*"))
    assert not seed.exists()


async def test_two_vms_at_once_make_a_lost_seed_once(catalog, monkeypatch):
    manifest, seed = an_image(catalog)
    seed.unlink()
    made = []
    real = home.make_seed

    async def count(*given):
        made.append(given)
        await real(*given)

    monkeypatch.setattr(seeds.home, "make_seed", count)
    states = await asyncio.gather(*(catalog.seed(manifest.id) for _ in range(3)))
    assert len(made) == 1
    assert all(state.current for state in states)


class KilledError(BaseException):
    """Stands for kill -9: nobody handles it."""


@pytest.mark.parametrize("after", ["coming", "manifest"])
async def test_a_daemon_that_is_killed_while_a_seed_is_swapped_leaves_the_old_or_the_new_one(
    catalog, monkeypatch, after
):
    manifest, seed = an_image(catalog, seed={"note": b"x"}, ssh=False, seed_of=GIVEN)
    old = fs.sparse_digest(seed)
    real = put_manifest

    def killed(directory, made):
        if after == "manifest":
            real(directory, made)
        raise KilledError

    monkeypatch.setattr(seeds, "put_manifest", killed)
    with pytest.raises(KilledError):
        await catalog.refresh_seed(manifest.id)
    monkeypatch.undo()
    assert (seed.parent / seeds.COMING).exists()
    again = ImageCatalog(catalog._dir, catalog._logs)
    await again.sweep()
    await again.keep_up()
    assert not (seed.parent / seeds.COMING).exists()
    now = again.by_id(manifest.id)
    assert fs.sparse_digest(seed) == now.files[SEED].digest
    assert (fs.sparse_digest(seed) == old) is (after == "coming")
    assert (await again.seed(manifest.id)).current is (after == "manifest")
    await again.refresh_seed(manifest.id)
    assert (await again.seed(manifest.id)).current


async def test_without_a_keep_up_the_next_vm_finishes_the_swap(catalog, monkeypatch):
    manifest, seed = an_image(catalog, seed={"note": b"x"}, ssh=False, seed_of=GIVEN)
    real = put_manifest

    def killed(directory, made):
        real(directory, made)
        raise KilledError

    monkeypatch.setattr(seeds, "put_manifest", killed)
    with pytest.raises(KilledError):
        await catalog.refresh_seed(manifest.id)
    monkeypatch.undo()
    state = await catalog.seed(manifest.id)
    assert state.current
    assert state.detail == ""
    assert content(seed, "note") == b"x"


async def test_a_seed_on_a_full_disk_stays_as_it_is(catalog, monkeypatch):
    manifest, seed = an_image(catalog, seed={"note": b"x"}, ssh=False)
    before = fs.sparse_digest(seed)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(seeds.fs, "clone_file", full)
    with pytest.raises(HostLacksError, match="no space"):
        await catalog.refresh_seed(manifest.id)
    assert fs.sparse_digest(seed) == before
    assert not list(catalog._dir.glob(".build-*"))


async def test_the_seed_of_an_image_that_is_gone_is_not_renewed(catalog):
    with pytest.raises(NotFoundError):
        await catalog.refresh_seed("0" * 12)


async def test_a_large_seed_is_looked_at_and_not_read(catalog, monkeypatch):
    manifest, seed = an_image(catalog)
    monkeypatch.setattr(seeds, "_DIGEST_BYTES", 0)
    monkeypatch.setattr(seeds.fs, "sparse_digest", lambda *_: pytest.fail("it was read"))
    assert (await catalog.seed(manifest.id)).detail == ""
    seed.chmod(0o600)
    with seed.open("r+b") as file:
        file.write(bytes(2048))
    assert seeds.wrong(seed, manifest.files[SEED]) == "damaged (no ext4)"


def test_a_superblock_tells_whether_it_may_be_cloned(tmp_path):
    image = toy.ext4(tmp_path / "x.img", {"a": b"a"}, size_kib=8 << 10)
    block = bytearray(image.read_bytes()[1024:2048])
    assert superblock_trouble(bytes(block), 8 * MIB) == ""
    assert superblock_trouble(bytes(block), 4 * MIB) == "damaged (its end)"
    assert superblock_trouble(b"short", 8 * MIB) == "damaged (no ext4)"
    for at, value in ((0x3A, 2), (0x3A, 0), (0x60, block[0x60] | 4)):
        changed = bytearray(block)
        changed[at] = value
        assert superblock_trouble(bytes(changed), 8 * MIB) == "damaged (not clean)"


async def test_who_waits_too_long_for_the_workshop_is_told(catalog, monkeypatch):
    manifest, seed = an_image(catalog)
    seed.unlink()
    monkeypatch.setattr(seeds, "_WAIT_S", 0.1)
    other = ImageCatalog(catalog._dir, catalog._logs)
    async with other._workshop.hold(0):
        with pytest.raises(RefusedError, match="another image build"):
            await catalog.seed(manifest.id)
    assert (await catalog.seed(manifest.id)).current
