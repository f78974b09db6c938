"""Imports and exports where they meet the host: real ext4, real tools, a full disk, a killed daemon, forged file systems."""

import asyncio
import contextlib
import gzip
import io
import os
import random
import signal
import struct
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import pytest

from banger.host import fs
from banger.host.exec import find_program, run
from banger.images.cage import caged
from banger.images.catalog import ImageCatalog
from banger.model.errors import (
    CommandFailedError,
    HostLacksError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
)
from banger.model.registration import Registration
from banger.model.transfer import ImageExport, ImageImport
from tests.framework import toy_container as toy
from tests.framework import toy_register
from tests.framework.small_disk import small_disk
from tests.host.test_image_build import place, user  # noqa: F401  fixtures

PYTHON = [
    toy.member("usr/bin/python3.11", b"python", mode=0o755),
    toy.symlink("usr/bin/python3", "python3.11"),
    toy.member("usr/lib/python3.11/json/__init__.py", b""),
    toy.member("usr/lib/python3.11/lib-dynload/_json.cpython-311.so", b""),
]
ROOT = [*PYTHON, toy.member("etc/shadow", b"root::1::::::\nme:x:1::::::\n", mode=0o640, gid=42), toy.member("usr/sbin/sshd", b"sshd", mode=0o755),
        toy.member("etc/ssh/sshd_config", b"Port 22\n"), toy.member("etc/ssh/ssh_host_rsa_key", b"secret"), toy.member("sbin/init", b"old")]  # fmt: skip
LAYER = toy.tar(ROOT)
SECOND = toy.tar([toy.hard_link("usr/sbin/again", "usr/sbin/sshd"), toy.member("var/lib/x", b"x" * 9000, uid=1000, gid=1000)])  # fmt: skip


def gpt(*parts):
    """The beginning of a disk with these partitions (first and last sector)."""
    header = b"EFI PART".ljust(72, b"\0") + struct.pack("<QII", 2, 128, 128)
    entries = b"".join(
        b"t" * 16 + b"u" * 16 + struct.pack("<QQ", *part) + bytes(80) for part in parts
    )
    return (bytes(510) + b"\x55\xaa" + header).ljust(1024, b"\0") + entries


def quiet(*words):
    """No progress."""


@pytest.fixture
def catalog(place):  # noqa: F811  the fixture
    made = ImageCatalog(place / "images", place / "logs")
    toy_register.base_image(place / "images")
    return made


def entries(catalog):
    return sorted(path.name for path in catalog._dir.iterdir() if path.name != ".lock")


def debugfs(image, request):
    done = subprocess.run(["/sbin/debugfs", "-R", request, image], check=True, capture_output=True)
    return done.stdout.decode(errors="replace")


def rootfs(catalog, made):
    return catalog._dir / made.id / "rootfs.img"


async def bring(catalog, path, **more):
    made = await catalog.import_image(ImageImport(path, **more), progress=quiet)
    image = rootfs(catalog, made)
    subprocess.run(["/sbin/e2fsck", "-f", "-n", image], check=True, capture_output=True)
    assert sorted(p.name for p in image.parent.iterdir()) == sorted([*made.files, "manifest.json"])
    return made


async def refused(catalog, path, error, match, **more):
    before = entries(catalog)
    with pytest.raises(error, match=match) as raised:
        await catalog.import_image(ImageImport(path, **more), progress=quiet)
    assert raised.value.hint
    assert entries(catalog) == before
    return raised.value


async def test_a_saved_container_becomes_an_image_that_has_what_a_guest_needs(catalog, place):  # noqa: F811
    saved = toy.docker_save(place / "web.tar", [LAYER, SECOND], Env=["A=b c"], Cmd=["/run me"], User="7:8", WorkingDir="/srv")  # fmt: skip
    made = await bring(catalog, saved, start_command=True)
    assert (made.name, made.kernel_release) == ("web", catalog.get("debian").kernel_release)
    assert [one.name for one in made.services] == ["ssh"]
    image = rootfs(catalog, made)
    assert debugfs(image, "cat /sbin/init").startswith("#!/usr/lib/banger/busybox sh")
    assert debugfs(image, "cat /etc/shadow") == "root:*:20000:0:99999:7:::\nme:x:1::::::\n"
    settings = debugfs(image, "cat /etc/ssh/sshd_config")
    assert "\nPermitRootLogin prohibit-password\n" in settings
    assert settings.endswith("\n#not with banger# Port 22\n")
    assert 'SetEnv "A=b c"' in debugfs(image, "cat /etc/ssh/sshd_config.d/50-banger.conf")
    assert "ssh_host_rsa_key" not in debugfs(image, "ls /etc/ssh")
    assert debugfs(image, "cat /etc/banger/environment") == "A=b c\n"
    entry = debugfs(image, "cat /usr/lib/banger/entrypoint")
    assert "cd /srv || exit 1" in entry
    assert entry.rstrip().endswith("/usr/lib/banger/as_user.py 7:8 '/run me'")
    assert "Links: 2" in debugfs(image, "stat /usr/sbin/again")
    assert "User:  1000   Group:  1000" in debugfs(image, "stat /var/lib/x")
    seed = image.with_name("work-seed.img")
    assert ".bashrc" in debugfs(seed, "ls /")


async def test_the_same_import_gives_the_same_image_whoever_does_it_and_in_whatever_form(catalog, place, user):  # noqa: F811  # fmt: skip
    plain = place / "one.tar"
    plain.write_bytes(LAYER)
    packed = place / "one.tar.gz"
    packed.write_bytes(gzip.compress(LAYER))
    layout = toy.write_layout(place / "one", toy.layout_files([LAYER]))
    ids = {(await bring(catalog, path, name="one", replace=True)).id for path in (plain, packed, layout)}  # fmt: skip
    assert len(ids) == 1
    home = place / "home"
    home.mkdir(mode=0o777)
    home.chmod(0o777)
    subprocess.run(["cp", "-r", catalog._dir / catalog.get("debian").id, home / "base"], check=True)
    subprocess.run(["chmod", "-R", "a+rX", home], check=True)
    process = user("-c", AS_USER, home, plain, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    out, err = process.communicate(timeout=180)
    assert process.returncode == 0, err.decode()
    assert {out.decode().strip()} == ids


AS_USER = """import asyncio, json, shutil, sys
from pathlib import Path
from banger.images.catalog import ImageCatalog
from banger.model.transfer import ImageImport
home = Path(sys.argv[1])
catalog = ImageCatalog(home / "images", home / "logs")
(home / "images").mkdir()
base = json.loads((home / "base" / "manifest.json").read_text())["id"]
shutil.copytree(home / "base", home / "images" / base)
made = asyncio.run(catalog.import_image(ImageImport(Path(sys.argv[2]), name="one"), progress=lambda *words: None))
print(made.id)
"""


@pytest.mark.parametrize("kind", ["ext4", "qcow2", "disk"])
async def test_a_foreign_ext4_is_registered_also_in_a_qcow2_and_on_a_disk_with_partitions(catalog, place, kind):  # noqa: F811  # fmt: skip
    path = toy_register.ext4(place / "root.img", {info.name: data for info, data in ROOT if data is not None and "python3" not in info.name})  # fmt: skip
    for request in ("mkdir /usr/lib/python3.11/lib-dynload", "sif /etc/shadow mode 0100640"):
        subprocess.run(["/sbin/debugfs", "-w", "-R", request, path], check=True, capture_output=True)  # fmt: skip
    if kind == "disk":
        disk = place / "disk.img"
        with disk.open("wb") as file:
            file.write(gpt((2048, 4095), (8192, 8192 + (4 << 11) - 1)))
            file.seek(8192 * 512)
            file.write(path.read_bytes())
            file.truncate(16 << 20)
        path = disk
    if kind == "qcow2":
        subprocess.run(["qemu-img", "convert", "-O", "qcow2", path, place / "root.qcow2"], check=True)  # fmt: skip
        path = place / "root.qcow2"
    wish = Registration("mine", base="debian", rootfs=path, boot_only=True)
    with pytest.raises(HostLacksError, match="no Python"):  # neither has the toy base one
        await catalog.register(wish, progress=quiet)
    assert entries(catalog) == [catalog.get("debian").id]


async def test_a_qcow2_over_another_file_is_refused(catalog, place):  # noqa: F811
    """Else it would bring in any file of the user's that it names."""
    secret = place / "secret"
    secret.write_bytes(b"secret" * 1000)
    path = place / "evil.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", secret, "-F", "raw", path], check=True)  # fmt: skip
    await refused(catalog, path, InvalidInputError, "needs another file")


async def test_a_file_system_with_errors_is_refused_before_it_is_read(catalog, place):  # noqa: F811
    """A forged directory may have a symlink and a file of one name, and debugfs would write through the one into the other."""
    path = toy_register.ext4(place / "root.img", {"a/f": b"x", "b": b"y"})
    for request in ("clri /b", "sif /a links_count 77"):
        subprocess.run(["/sbin/debugfs", "-w", "-R", request, path], check=True, capture_output=True)  # fmt: skip
    await refused(catalog, path, InvalidInputError, "has errors")


async def test_what_reads_a_foreign_file_system_can_write_to_one_directory_alone(place):  # noqa: F811
    inside, outside = place / "inside", place / "outside"
    inside.mkdir()
    outside.mkdir()
    shell = find_program("sh")
    await run(caged([shell, "-c", "echo x > here"], inside), timeout_s=30)
    assert (inside / "here").read_text() == "x\n"
    with pytest.raises(CommandFailedError) as raised:
        await run(caged([shell, "-c", f"echo x > {outside}/there"], inside), timeout_s=30)
    assert "Read-only file system" in raised.value.detail
    assert list(outside.iterdir()) == []


async def test_a_forged_directory_writes_nowhere_else(place):  # noqa: F811
    """The attack itself, had e2fsck not seen it: `rdump` follows the symlink, and the cage holds."""
    from banger.images.ext4 import copy_out

    victim = place / "victim"
    victim.write_text("untouched")
    victim.chmod(0o666)
    path = toy_register.ext4(place / "root.img", {"d/aaaa": b"overwritten", "d/bbbb": b"x"})
    subprocess.run(["/sbin/debugfs", "-w", "-R", f"symlink /d/cccc {victim}", path], check=True, capture_output=True)  # fmt: skip
    data = bytearray(path.read_bytes())
    for old, new in ((b"cccc", b"zzzz"), (b"aaaa", b"zzzz")):
        data[data.index(old) : data.index(old) + 4] = new
    path.write_bytes(bytes(data))
    target = place / "target"
    target.mkdir()
    with pytest.raises((InvalidInputError, CommandFailedError)):
        await copy_out(path, "/d", target)
    assert victim.read_text() == "untouched"


@pytest.mark.parametrize(
    ("members", "match"),
    [
        ([toy.member("../../x", b"")], "leaves the root"),
        ([toy.member("f", b""), toy.hard_link("l", "../../../etc/shadow")], "leaves the root"),
        ([toy.hard_link("l", "etc/missing")], "cannot be placed"),
        ([toy.symlink("d", "d"), toy.member("d/x", b"")], "cannot be placed"),
    ],
)
async def test_a_layer_that_reaches_out_is_refused_and_nothing_is_left(catalog, place, members, match):  # noqa: F811  # fmt: skip
    layout = toy.write_layout(place / "evil", toy.layout_files([LAYER, toy.tar(members)]))
    await refused(catalog, layout, InvalidInputError, match)


async def test_a_symlink_out_is_kept_as_a_symlink_and_never_followed(catalog, place):  # noqa: F811
    outside = place / "outside"
    outside.mkdir()
    evil = toy.tar([toy.symlink("out", str(outside)), toy.member("out/x", b"in the root")])
    made = await bring(catalog, toy.write_layout(place / "evil", toy.layout_files([LAYER, evil])))
    assert list(outside.iterdir()) == []
    assert debugfs(rootfs(catalog, made), f"cat {outside}/x") == "in the root"


async def test_names_and_bases_that_are_not_there_are_told(catalog, place):  # noqa: F811
    path = place / "root.tar"
    path.write_bytes(LAYER)
    await refused(catalog, path, RefusedError, "name 'debian' is taken", name="debian")
    await refused(catalog, path, NotFoundError, "no image 'plan9'", kernel_from="plan9")
    await refused(catalog, place / "none.tar", NotFoundError, "does not exist")
    await refused(catalog, Path("/dev/zero"), InvalidInputError, "no regular file")
    (place / "empty").write_bytes(b"")
    await refused(catalog, place / "empty", InvalidInputError, "is empty")
    (place / "text").write_bytes(b"hello " * 1000)
    await refused(catalog, place / "text", InvalidInputError, "no root file system")
    await refused(catalog, place, InvalidInputError, "no OCI layout")
    os.mkfifo(place / "fifo")
    await refused(catalog, place / "fifo", InvalidInputError, "no regular file")
    fresh = ImageCatalog(place / "fresh", place / "logs")
    with pytest.raises(NotFoundError, match="no image gives a kernel"):
        await fresh.import_image(ImageImport(path), progress=quiet)


async def test_an_export_comes_back_as_the_same_image_and_under_another_name_as_another(catalog, place):  # noqa: F811  # fmt: skip
    image = catalog.get("debian")
    path = place / "debian.banger"
    await catalog.export_image(ImageExport("debian", path), progress=quiet)
    with pytest.raises(RefusedError, match="there already"):
        await catalog.export_image(ImageExport("debian", path), progress=quiet)
    before = path.read_bytes()
    await catalog.export_image(ImageExport(image.id, path, replace=True), progress=quiet)
    assert path.read_bytes() == before
    other = ImageCatalog(place / "other", place / "logs")
    assert await other.import_image(ImageImport(path), progress=quiet) == image
    assert await other.import_image(ImageImport(path), progress=quiet) == image
    second = await other.import_image(ImageImport(path, name="second"), progress=quiet)
    assert second.id != image.id
    assert second.files == image.files


@pytest.mark.parametrize("name", ["layout", "layout.tar"])
async def test_an_oci_layout_of_an_image_comes_back_bootable(catalog, place, name):  # noqa: F811
    image = catalog.get("debian")
    path = place / name
    await catalog.export_image(ImageExport("debian", path, "oci"), progress=quiet)
    other = ImageCatalog(place / "other", place / "logs")
    made = await bring(other, path, name="again")
    assert debugfs(rootfs(other, made).with_name("work-seed.img"), "cat /seed") == "of the base"
    for file in ("vmlinux", "vmlinuz", "initramfs.img"):
        assert made.files[file] == image.files[file]
    assert (made.cmdline, made.services, made.packages) == (image.cmdline, image.services, image.packages)  # fmt: skip
    for file in ("usr/lib/banger/agent.pyz", "root/.bashrc"):
        theirs = debugfs(rootfs(other, made), f"cat /{file}")
        assert theirs == debugfs(rootfs(catalog, image), f"cat /{file}") != ""


KILLED = """import asyncio, os, signal, sys
from pathlib import Path
from banger.images.catalog import ImageCatalog
from banger.model.transfer import ImageExport, ImageImport
home, path, stage, verb = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], sys.argv[4]
def progress(name, detail):
    if name == stage:
        os.kill(os.getpid(), signal.SIGKILL)
catalog = ImageCatalog(home / "images", home / "logs")
if verb == "import":
    asyncio.run(catalog.import_image(ImageImport(path, name="web"), progress=progress))
else:
    asyncio.run(catalog.export_image(ImageExport("debian", path, verb), progress=progress))
"""


def killed(place, path, stage, verb="import"):  # noqa: F811
    argv = [sys.executable, "-c", KILLED, place, path, stage, verb]
    done = subprocess.run([str(word) for word in argv], check=False, capture_output=True, timeout=120)  # fmt: skip
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.parametrize("stage", ["validate", "open", "layers", "agent", "rootfs", "seed", "kernel", "initramfs", "seal"])  # fmt: skip
async def test_an_import_that_is_killed_in_any_step_leaves_nothing_and_the_next_works(catalog, place, stage):  # noqa: F811  # fmt: skip
    before = entries(catalog)
    saved = toy.docker_save(place / "web.tar", [LAYER, SECOND])
    killed(place, saved, stage)
    await catalog.sweep()
    assert entries(catalog) == before
    if stage == "rootfs":
        await bring(catalog, saved)


@pytest.mark.parametrize(("verb", "stage"), [("banger", "files"), ("oci", "rootfs"), ("oci", "layer"), ("oci", "boot")])  # fmt: skip
async def test_an_export_that_is_killed_in_any_step_leaves_nothing_and_the_next_works(catalog, place, verb, stage):  # noqa: F811  # fmt: skip
    before = entries(catalog)
    out = place / "out"
    out.mkdir()
    killed(place, out / "debian", stage, verb)
    await catalog.sweep()
    assert entries(catalog) == before
    for (
        path
    ) in out.iterdir():  # of a directory that was being made; a file has no name before it is whole
        assert verb == "oci"
        os.utime(path, (time.time() - 3600,) * 2)
    await catalog.export_image(ImageExport("debian", out / "debian", verb), progress=quiet)
    assert [path.name for path in out.iterdir()] == ["debian"]


async def test_a_cancelled_import_leaves_nothing(catalog, place):  # noqa: F811
    before = entries(catalog)
    saved = toy.docker_save(place / "web.tar", [LAYER, SECOND])
    reached = asyncio.Event()
    task = asyncio.create_task(
        catalog.import_image(ImageImport(saved), progress=lambda stage, _: reached.set() if stage == "rootfs" else None)
    )  # fmt: skip
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert entries(catalog) == before


def fill(path):
    """Write ``path`` until not a block is left."""
    with path.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


async def test_a_disk_that_is_really_full_is_told_and_left_as_it_was(place, monkeypatch):  # noqa: F811
    large = toy.tar([*ROOT, toy.member("big", random.Random(1).randbytes(24 << 20))])
    saved = toy.docker_save(place / "web.tar", [large])
    with small_disk(place, 48) as mount:
        catalog = ImageCatalog(mount / "images", mount / "logs")
        toy_register.base_image(mount / "images")
        export = place / "debian.banger"
        await catalog.export_image(ImageExport("debian", export), progress=quiet)
        before = entries(catalog)
        for free_bytes in (
            None,
            1 << 40,
        ):  # found out beforehand, and, if that was wrong, under way
            if free_bytes is not None:
                monkeypatch.setattr(fs, "free_bytes", lambda _: free_bytes)  # noqa: B023
            error = await refused(catalog, saved, HostLacksError, "no space")
            assert "df -h" in error.hint
        filler = mount / "filler"
        fill(filler)
        await refused(catalog, export, HostLacksError, "no space", name="second")
        with pytest.raises(HostLacksError, match="no space"):
            await catalog.export_image(ImageExport("debian", mount / "x.banger"), progress=quiet)
        filler.unlink()
        assert entries(catalog) == before
        assert sorted(path.name for path in mount.iterdir()) == ["images", "lost+found"]


@pytest.mark.long
@pytest.mark.timeout(300)
async def test_a_hundred_thousand_files_are_imported(catalog, place):  # noqa: F811
    path = place / "many.tar"
    with tarfile.open(path, "w") as archive:
        for info, data in [*ROOT, *(toy.member(f"many/d{n // 500}/f{n}", b"x" * (n % 50)) for n in range(100_000))]:  # fmt: skip
            archive.addfile(info, None if data is None else io.BytesIO(data))
    began = time.monotonic()
    made = await bring(catalog, path)
    print(f"{time.monotonic() - began:.1f} s")
    assert debugfs(rootfs(catalog, made), "cat /many/d199/f99999") == "x" * 49
