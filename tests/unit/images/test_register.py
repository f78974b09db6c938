"""Images out of files that a user has: what comes of them, what is refused, and that a failure leaves nothing."""

import asyncio
import errno
import os
import subprocess
import threading
from dataclasses import replace
from pathlib import Path

import pytest

from banger.host import fs
from banger.images import inputs, root_facts
from banger.images.catalog import ImageCatalog
from banger.model.errors import (
    BangerError,
    HostLacksError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
)
from banger.model.manifest import Service
from banger.model.registration import Registration
from banger.storage.boot_check import check_boot_files
from tests.framework import toy_register as toy
from tests.framework.toy_root import RELEASE, bz_image, elf_kernel, lz4_legacy
from tests.unit.images.test_initramfs import parse_newc

MINE = "6.9.0-mine"
STAGES = ["validate", "kernel", "initramfs", "rootfs", "seed", "seal"]


@pytest.fixture
def catalog(tmp_path):
    return ImageCatalog(tmp_path / "images", tmp_path / "logs")


@pytest.fixture
def base(catalog):
    return toy.base_image(catalog._dir)


@pytest.fixture
def file(tmp_path):
    """Writes a file of the user's and returns its path."""

    def write(name, data):
        (tmp_path / name).write_bytes(data)
        return tmp_path / name

    return write


@pytest.fixture
def kernel(file):
    return file("bzImage", toy.bzimage(MINE))


async def register(catalog, name="mine", *, progress=lambda *words: None, **given):
    return await catalog.register(Registration(name, **given), progress=progress)


async def refused(catalog, error=InvalidInputError, match="", **given):
    """The error; afterwards there is nothing but what was there."""
    before = entries(catalog)
    with pytest.raises(error, match=match) as raised:
        await register(catalog, **given)
    assert entries(catalog) == before
    assert raised.value.hint
    return raised.value


def entries(catalog):
    directory = catalog._dir
    return sorted(p.name for p in directory.iterdir() if p.name != ".lock") if directory.exists() else []  # fmt: skip


def content(catalog, image, name):
    return (catalog._dir / image.id / name).read_bytes()


def as_stated(catalog, image):
    """Every file is what the manifest says, and the boot stack belongs together."""
    directory = catalog._dir / image.id
    assert sorted(p.name for p in directory.iterdir()) == sorted([*image.files, "manifest.json"])
    for name, entry in image.files.items():
        assert (directory / name).stat().st_size == entry.size_bytes
        assert fs.sparse_digest(directory / name) == entry.digest
        assert (directory / name).stat().st_mode & 0o777 == 0o444
    check_boot_files(catalog.boot_stack(image.id))
    assert catalog.get(image.id) == image


async def test_what_is_not_given_is_the_base_images(catalog, base):
    said = []
    made = await register(catalog, base="debian", progress=lambda *words: said.append(words))
    as_stated(catalog, made)
    assert list(dict.fromkeys(stage for stage, _ in said)) == STAGES
    assert made.files == base.files
    kept = ("distribution", "release", "kernel_release", "cmdline", "services", "packages", "kernel_digest", "pvh", "disk_bytes")  # fmt: skip
    assert [getattr(made, key) for key in kept] == [getattr(base, key) for key in kept]
    assert (made.name, made.recipe, made.inputs_digest) == ("mine", "", "")
    assert made.id != base.id
    assert fs.allocated_bytes(catalog._dir / made.id / "rootfs.img") > 0
    await catalog.delete(base.id, unused=lambda: None, progress=lambda *_: None)
    as_stated(catalog, made)


async def test_the_base_images_own_kernel_keeps_its_initramfs(catalog, base, file):
    made = await register(catalog, base="debian", kernel=file("vmlinuz", toy.BASE_KERNEL))
    as_stated(catalog, made)
    assert made.files == base.files
    elf = elf_kernel(RELEASE)
    other = await register(catalog, "elf", base="debian", kernel=file("vmlinux", elf))
    as_stated(catalog, other)
    assert set(other.files) == set(base.files) - {"vmlinuz"}
    assert other.files["initramfs.img"] == base.files["initramfs.img"]


async def test_another_kernel_does_not_get_the_initramfs_of_the_base(catalog, base, kernel):
    error = await refused(catalog, base="debian", kernel=kernel, match="not that of image debian")
    assert MINE in error.what
    assert "--modules" in error.hint


@pytest.mark.parametrize("form", ["directory", "tar"])
async def test_another_kernel_with_its_modules_gets_bangers_initramfs(
    catalog, base, kernel, tmp_path, form
):
    make = toy.modules if form == "directory" else toy.modules_tar
    given = make(tmp_path / "given", MINE)
    made = await register(catalog, base="debian", kernel=kernel, modules=given)
    as_stated(catalog, made)
    assert made.kernel_release == MINE
    assert content(catalog, made, "vmlinuz") == toy.bzimage(MINE)
    members = parse_newc(content(catalog, made, "initramfs.img"))
    order = members["modules/order"][1].decode().split()
    assert order[0] == "virtio.ko"
    assert set(order) == {"virtio.ko", "virtio_mmio.ko", "virtio_blk.ko", "virtio_net.ko"}
    assert members["bin/busybox"][1] == toy.BUSYBOX
    assert members["init"][1].startswith(b"#!/bin/busybox sh")


async def test_modules_of_another_kernel_are_refused(catalog, base, kernel, tmp_path):
    given = toy.modules(tmp_path / "given", "6.1.0-other")
    await refused(catalog, base="debian", kernel=kernel, modules=given, match=r"for kernel 6\.1\.0")


async def test_new_modules_for_the_base_images_kernel_renew_its_initramfs(catalog, base, tmp_path):
    made = await register(catalog, base="debian", modules=toy.modules(tmp_path / "given", RELEASE))
    as_stated(catalog, made)
    assert made.files["vmlinuz"] == base.files["vmlinuz"]
    assert "modules/virtio.ko" in parse_newc(content(catalog, made, "initramfs.img"))


async def test_a_kernel_with_all_drivers_built_in_needs_no_modules(catalog, base, file):
    given = file("bzImage", toy.bzimage(MINE, more=toy.IN_ALL))
    made = await register(catalog, base="debian", kernel=given, built_in=True)
    as_stated(catalog, made)
    assert parse_newc(content(catalog, made, "initramfs.img"))["modules/order"][1] == b""


async def test_a_kernel_that_lacks_a_driver_is_told_which(catalog, base, file):
    given = file("bzImage", toy.bzimage(MINE, more=b"\0virtio-mmio\0ext4\0"))
    error = await refused(
        catalog, base="debian", kernel=given, built_in=True, match="no virtio_blk built in"
    )
    assert "--modules" in error.hint


@pytest.mark.parametrize("head", [b"070701", b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0"])
async def test_an_initramfs_of_ones_own_is_taken_as_it_is(catalog, base, kernel, file, head):
    given = file("initrd", head + b" mine")
    made = await register(catalog, base="debian", kernel=kernel, initramfs=given)
    as_stated(catalog, made)
    assert content(catalog, made, "initramfs.img") == head + b" mine"
    given.write_bytes(b"changed afterwards")
    as_stated(catalog, made)


async def test_an_elf_kernel_needs_a_pvh_entry_and_a_bzimage_does_not(catalog, base, file):
    initramfs = file("initrd", b"070701")
    elf = elf_kernel(MINE, notes=())
    error = await refused(
        catalog, base="debian", kernel=file("vmlinux", elf), initramfs=initramfs, match="PVH"
    )
    assert "bzImage" in error.hint
    bzimage = file("bzImage", bz_image(lz4_legacy(elf), len(elf)))
    made = await register(catalog, base="debian", kernel=bzimage, initramfs=initramfs)
    as_stated(catalog, made)
    stack = catalog.boot_stack(made.id)
    assert (made.pvh, stack.pvh_kernel) == (False, stack.bzimage)


async def test_an_image_without_a_base_is_made_of_files_alone(catalog, tmp_path, file):
    rootfs = toy.rootfs(tmp_path / "rootfs.img", size_kib=70_001)
    made = await register(
        catalog,
        rootfs=rootfs,
        kernel=file("vmlinux", elf_kernel(MINE, more=toy.IN_ALL)),
        built_in=True,
        work_seed=toy.ext4(tmp_path / "seed.img", {"a": b"b"}),
    )
    as_stated(catalog, made)
    assert (made.distribution, made.release, made.architecture) == ("toy", "bookworm", "amd64")
    assert (made.services, made.packages) == ((Service("ssh", 22),), {"bash": "5.2"})
    assert (made.disk_bytes, made.cmdline) == (69 << 20, "rw")
    assert content(catalog, made, "rootfs.img")[: 70_001 << 10] == rootfs.read_bytes()
    assert made.files["work-seed.img"].size_bytes == 64 << 20
    assert "image register --name mine" in made.remedy


async def test_services_and_cmdline_that_are_named_count(catalog, base, tmp_path):
    wanted = {"services": (Service("web", 80),), "cmdline": "rw mitigations=off"}
    for name, given in (("a", None), ("b", toy.rootfs(tmp_path / "r", etc__banger__services__json=b""))):  # fmt: skip
        made = await register(catalog, name, base="debian", rootfs=given, **wanted)
        assert (made.services, made.cmdline) == (wanted["services"], wanted["cmdline"])


@pytest.mark.parametrize(
    "text",
    [
        b"{",
        b'[{"name": "A b", "port": 1}]',
        b'[{"name": "a", "port": 0}]',
        b'["ssh"]',
        b'[{"name": "a", "port": 1, "path": "x\\r\\n"}]',
    ],
)
def test_services_of_a_root_that_are_malformed_are_told(text):
    with pytest.raises(InvalidInputError, match=r"services\.json") as raised:
        root_facts.parse_services(text)
    assert "--service" in raised.value.hint


async def test_a_root_without_os_release_or_services_is_unknown_and_has_none(
    catalog, base, tmp_path
):
    given = toy.rootfs(tmp_path / "r", without={"usr/lib/os-release", "etc/banger/services.json", "var/lib/dpkg/status"})  # fmt: skip
    made = await register(catalog, base="debian", rootfs=given)
    assert (made.distribution, made.release) == ("unknown", "unknown")
    assert (made.services, made.packages) == ((), {})


def broken(how, path):
    """A rootfs that is no good, in one way."""
    toy.rootfs(path)
    if how == "random":
        path.write_bytes(os.urandom(1 << 20))
    elif how == "truncated":
        os.truncate(path, path.stat().st_size - 4096)
    elif how == "with errors":
        subprocess.run(["/sbin/debugfs", "-w", "-R", "ssv state 2", path], check=True, capture_output=True)  # fmt: skip
    elif how == "an xfs":
        path.write_bytes(b"XFSB" + bytes(1 << 20))
    return path


@pytest.mark.parametrize("what", ["rootfs", "work_seed"])
@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("random", "not an ext4|no root file system"),
        ("an xfs", "not an ext4|no root file system"),
        ("truncated", "cut off"),
        ("with errors", "has errors"),
    ],
)
async def test_a_disk_without_a_whole_file_system_is_refused(
    catalog, base, tmp_path, what, how, said
):
    given = {what: broken(how, tmp_path / "disk.img")}
    error = await refused(catalog, base="debian", match=said, **given)
    assert str(tmp_path / "disk.img") in error.what


async def test_a_root_without_an_agent_or_a_python_for_it_is_refused_with_what_to_do(
    catalog, base, tmp_path
):
    given = toy.rootfs(tmp_path / "r", without={"usr/lib/banger/agent.pyz"})
    error = await refused(catalog, HostLacksError, "no Python for the agent either", base="debian", rootfs=given)  # fmt: skip
    assert "--kernel-from debian" in error.hint


@pytest.mark.parametrize(
    "busybox", [None, b"#!/bin/sh\n", elf_kernel(release="", notes=(), interpreter=True)]
)
async def test_bangers_initramfs_needs_a_static_busybox(catalog, tmp_path, file, busybox):
    changed = {} if busybox is None else {"usr__bin__busybox": busybox}
    without = {"usr/bin/busybox"} if busybox is None else ()
    error = await refused(
        catalog,
        rootfs=toy.rootfs(tmp_path / "r", without=without, **changed),
        kernel=file("k", elf_kernel(MINE, more=toy.IN_ALL)),
        built_in=True,
        match="no static busybox",
    )
    assert "--initramfs" in error.hint


async def test_the_base_images_busybox_serves_a_root_without_one(catalog, base, tmp_path, kernel):
    made = await register(
        catalog, base="debian", kernel=kernel, modules=toy.modules(tmp_path / "m", MINE),
        rootfs=toy.rootfs(tmp_path / "r", without={"usr/bin/busybox"}),
    )  # fmt: skip
    members = parse_newc(content(catalog, made, "initramfs.img"))
    assert members["bin/busybox"][1] == toy.BUSYBOX


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (elf_kernel(machine=183), "for aarch64, not for x86_64"),
        (b"#!/bin/sh\nexit\n", "neither an ELF file nor a bzImage"),
        (b"\x7fELF\2\1\1" + bytes(200), "for machine 0"),
        (toy.bzimage(MINE)[:-10], "cut off"),
        (bz_image(lz4_legacy(elf_kernel(machine=183)), len(elf_kernel(machine=183))), "aarch64"),
        (b"", "is empty"),
    ],
)
async def test_what_is_no_kernel_for_this_machine_is_refused(catalog, base, file, data, said):
    given = file("kernel", data)
    await refused(catalog, base="debian", kernel=given, built_in=True, match=said)


async def test_an_initramfs_that_is_no_archive_is_refused(catalog, base, file):
    await refused(catalog, base="debian", initramfs=file("i", b"hello"), match="no cpio archive")


async def test_files_that_are_too_large_are_refused(catalog, base, file, monkeypatch):
    monkeypatch.setattr(inputs, "MAX_INITRAMFS_BYTES", 100)
    monkeypatch.setattr(inputs, "MAX_KERNEL_BYTES", 100)
    error = InvalidInputError
    for given in ({"initramfs": file("i", b"070701" + bytes(100))}, {"kernel": file("k", toy.BASE_KERNEL)}):  # fmt: skip
        with pytest.raises(error, match="larger than 100B"):
            await register(catalog, base="debian", **given)


@pytest.mark.parametrize("option", ["rootfs", "kernel", "initramfs", "modules", "work_seed"])
@pytest.mark.parametrize("kind", ["missing", "directory", "fifo", "unreadable"])
async def test_a_file_that_cannot_be_taken_is_named(
    catalog, base, tmp_path, monkeypatch, option, kind
):
    path = tmp_path / "given"
    error, said = InvalidInputError, "no regular file"
    if kind == "missing":
        error, said = NotFoundError, "does not exist"
    elif kind == "directory":
        path.mkdir()
        said = {"modules": "modules.dep", "rootfs": "no OCI layout"}.get(option, said)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.touch()
        real = os.open

        def deny(name, *more, **named):
            if name == path:
                raise PermissionError(errno.EACCES, "Permission denied")
            return real(name, *more, **named)

        monkeypatch.setattr(os, "open", deny)
        said = "cannot be read by the daemon"
    found = await refused(catalog, error, said, base="debian", **{option: path})
    assert str(path) in found.what


async def test_a_name_that_is_taken_is_refused_and_can_be_taken_over(catalog, base, kernel, file):
    error = await refused(catalog, RefusedError, "taken", name="debian", base="debian")
    assert f"debian-{base.id}" in error.hint
    given = {"kernel": kernel, "initramfs": file("i", b"070701")}
    made = await register(catalog, "debian", base="debian", replace=True, **given)
    assert catalog.get("debian") == made
    assert catalog.get(base.id).name == f"debian-{base.id}"
    as_stated(catalog, made)


async def test_registering_the_same_again_mends_what_was_damaged(catalog, base, kernel, file):
    given = {"kernel": kernel, "initramfs": file("i", b"070701")}
    first = await register(catalog, base="debian", **given)
    path = catalog._dir / first.id / "vmlinux"
    path.unlink()
    path.write_bytes(b"damaged")
    again = await register(catalog, base="debian", replace=True, **given)
    assert again.id == first.id
    as_stated(catalog, again)
    assert entries(catalog) == sorted([base.id, first.id])


async def test_a_base_image_that_is_not_there_or_damaged_is_told(catalog, base):
    with pytest.raises(NotFoundError):
        await register(catalog, base="plan9")
    seed = catalog._dir / base.id / "work-seed.img"
    seed.chmod(0o644)
    os.truncate(seed, 100)
    error = await refused(catalog, HostLacksError, "work-seed.img is missing or damaged", base="debian")  # fmt: skip
    assert error.hint == "banger image build debian --force"


@pytest.mark.parametrize("stage", STAGES)
async def test_a_failure_at_any_stage_leaves_nothing(catalog, base, kernel, tmp_path, stage):
    def fail(name, _):
        if name == stage:
            raise BangerError(f"told to fail at {stage}", hint="-")

    await refused(
        catalog, BangerError, "told to fail", base="debian", kernel=kernel, progress=fail,
        modules=toy.modules(tmp_path / "m", MINE), rootfs=toy.rootfs(tmp_path / "r"),
    )  # fmt: skip


async def test_a_cancelled_copy_ends_and_leaves_nothing(catalog, base, tmp_path, monkeypatch):
    begun = threading.Event()

    def endless(source, target, *, between, **_):
        target.write_bytes(b"half")
        while True:
            begun.set()
            between()

    given = toy.rootfs(tmp_path / "r")
    monkeypatch.setattr(fs, "supports_reflink", lambda _: False)
    monkeypatch.setattr(fs, "clone_file", endless)
    task = asyncio.create_task(register(catalog, base="debian", rootfs=given))
    assert await asyncio.to_thread(begun.wait, 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 10)
    assert entries(catalog) == [base.id]
    monkeypatch.undo()
    await register(catalog, base="debian", rootfs=given)  # the lock is free again


async def test_too_little_space_is_said_before_anything_is_copied(
    catalog, base, kernel, monkeypatch
):
    monkeypatch.setattr(fs, "free_bytes", lambda path: 1 << 20)
    error = await refused(catalog, HostLacksError, "no space", base="debian", kernel=kernel)
    assert "1M are free" in error.detail


@pytest.mark.parametrize(
    ("number", "said"),
    [
        (errno.ENOSPC, "no space"),
        (errno.EDQUOT, "no space"),
        (errno.EIO, "could not be registered"),
    ],
)
async def test_a_disk_that_fails_under_way_is_told(
    catalog, base, tmp_path, monkeypatch, number, said
):
    def fail(source, target, **_):
        target.write_bytes(b"half")
        raise OSError(number, os.strerror(number))

    given = toy.rootfs(tmp_path / "r")
    monkeypatch.setattr(fs, "supports_reflink", lambda _: False)
    monkeypatch.setattr(fs, "clone_file", fail)
    error = await refused(catalog, HostLacksError, said, base="debian", rootfs=given)
    assert os.strerror(number) in error.detail


async def test_two_registrations_at_once_are_not_possible(catalog, base, tmp_path):
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def hold(stage, _):
        if stage == "kernel":
            begun.set()
            await go_on.wait()

    task = asyncio.create_task(register(catalog, base="debian", progress=hold))
    await begun.wait()
    other = ImageCatalog(tmp_path / "images", tmp_path / "logs")
    with pytest.raises(RefusedError, match="another image build"):
        await register(other, "other", base="debian")
    go_on.set()
    await task


def test_a_wish_that_cannot_boot_is_refused_before_any_file_is_looked_at():
    here = Path("/x")
    for wish, said in (
        ({}, "no root file system"),
        ({"rootfs": here}, "no kernel"),
        ({"rootfs": here, "kernel": here}, "no initramfs"),
        ({"base": "b", "modules": here, "built_in": True}, "either given or made"),
        ({"base": "b", "kernel": Path("x")}, "no absolute path"),
    ):
        with pytest.raises(InvalidInputError, match=said) as raised:
            Registration("mine", **wish)
        assert raised.value.hint
    whole = Registration("mine", rootfs=here, kernel=here, built_in=True)
    assert replace(whole, base="b").paths == {"rootfs": here, "kernel": here}


@pytest.mark.parametrize(
    ("text", "payload"),
    [(b"2\n", 2), (b"1", 1), (b"999", 2), (b"0", 1), (b"x", 1), (b"9" * 5000, 1), (b"", 1), ("²".encode(), 1)],
)  # fmt: skip
def test_what_a_root_says_of_its_payload_is_no_more_than_is_known(text, payload):
    assert root_facts.parse_payload(text) == payload


async def test_a_registered_root_says_which_payload_it_has_and_whose_its_seed_is(
    catalog, base, tmp_path, kernel
):
    assert base.payload == 1
    root = toy.rootfs(tmp_path / "two.img", usr__lib__banger__payload=b"2\n")
    made = await register(catalog, base="debian", rootfs=root)
    assert (made.payload, made.seed, made.seed_of) == (2, base.seed, "given")
    assert made.history[-1].parent == base.id
    seed = toy.ext4(tmp_path / "seed.img", {"a": b"a"})
    given = await register(catalog, "given", base="debian", work_seed=seed)
    assert (given.payload, given.seed, given.seed_of) == (1, "", "given")
    own = await register(
        catalog, "own", rootfs=root, kernel=kernel, modules=toy.modules(tmp_path / MINE, MINE)
    )
    assert (own.payload, catalog.seed_word(own), own.seed_of) == (2, "current", "root")
    as_stated(catalog, own)
