"""Promotion where it meets the host: by an ordinary user, in the file system of a small disk that is really full."""

import json
import os
import subprocess

import pytest

from banger.host import fs, probe
from banger.images.catalog import ImageCatalog
from banger.model.errors import HostLacksError
from banger.model.promotion import Promotion, PromotionSource
from tests.framework import toy_register as toy
from tests.host.test_image_build import USER, place, user  # noqa: F401  fixtures
from tests.unit.images.test_promote import KEPT, OF_THE_VM, SECRET, WORK
from tests.unit.images.test_seeds import an_image, is_whole, names

PROMOTE = """import asyncio, json, sys
from pathlib import Path
from banger.host import fs
from banger.images.catalog import ImageCatalog
from banger.model.promotion import Promotion, PromotionSource
where, root, work, base = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
catalog = ImageCatalog(where / "images", where / "logs")
async def copy(target):
    return fs.clone_file(root, target)
source = PromotionSource("a" * 12, "box", base, work, copy, 0)
made = asyncio.run(catalog.promote(Promotion("mine", with_work=True), source, progress=lambda *words: None))
print(json.dumps(made.id))
"""


def disks(directory):
    root = toy.ext4(directory / "root.img", {**toy.FILES, **OF_THE_VM, **KEPT}, size_kib=64 << 10)
    work = toy.ext4(directory / "work.img", {**WORK, "root/x": b"x"}, size_kib=64 << 10)
    return root, work


def test_an_ordinary_user_promotes_as_root_does(place, user):  # noqa: F811
    """Its tools have the user's own namespaces, and in them no capability, so that they work on the user's own files alone."""
    home = place / "home"
    base, _ = an_image(ImageCatalog(home / "images", home / "logs"))
    root, work = disks(place)
    if os.geteuid() == 0:
        subprocess.run(["chown", "-R", USER, home], check=True)
    process = user("-c", PROMOTE, home, root, work, base.id, stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    directory = home / "images" / json.loads(out)
    for name in ("rootfs.img", "work-seed.img"):
        is_whole(directory / name)
    assert SECRET[:24] not in (directory / "rootfs.img").read_bytes()
    assert "note" in names(directory / "work-seed.img")
    assert "machine-id" not in names(directory / "rootfs.img", "/etc")


async def test_a_disk_that_is_really_full_is_told_and_left_as_it_was(place, monkeypatch):  # noqa: F811
    """At several sizes, so that it is full while the root is copied, while it is changed, and while the seed is made."""
    answer = probe.loop()
    if not answer:
        pytest.skip(answer.why)
    root, work = disks(place)
    with work.open("r+b") as file:
        file.seek(0, os.SEEK_END)
    (place / "big").write_bytes(os.urandom(12 << 20))
    for disk in (root, work):
        subprocess.run(["/sbin/debugfs", "-w", "-R", f"write {place / 'big'} big", disk], check=True, capture_output=True)  # fmt: skip
    seen = set()
    for size_mib in (30, 34, 38, 42, 46, 50):
        device, mount = place / f"disk{size_mib}.img", place / f"disk{size_mib}"
        with device.open("wb") as file:
            file.truncate(size_mib << 20)
        subprocess.run(
            ["mkfs.ext4", "-q", "-F", "-m", "0", "-O", "^has_journal", device], check=True
        )
        mount.mkdir()
        subprocess.run(["mount", "-o", "loop", device, mount], check=True)
        try:
            seen.add(await one(mount, root, work, monkeypatch))
        finally:
            subprocess.run(["umount", mount], check=True)
    assert len(seen) >= 2, seen


async def one(mount, root, work, monkeypatch):
    """Promote on a small disk; the stage in which it was full. Afterwards there is what was there."""
    catalog, stages = ImageCatalog(mount / "images", mount / "logs"), []
    base, _ = an_image(catalog)

    async def copy(target):
        return fs.clone_file(root, target)

    source = PromotionSource("a" * 12, "box", base.id, work, copy, 0)
    monkeypatch.setattr(fs, "free_bytes", lambda _: 1 << 40)
    before = sorted(path.name for path in (mount / "images").iterdir())
    made = error = None
    try:
        made = await catalog.promote(
            Promotion("mine", with_work=True), source, progress=lambda name, _: stages.append(name)
        )
    except HostLacksError as full:
        error = full
    if error is not None:
        assert "no space to promote" in error.what
        assert "df -h" in error.hint
        assert sorted(p.name for p in (mount / "images").iterdir()) == sorted([".lock", *before])
        return stages[-1]
    is_whole(mount / "images" / made.id / "rootfs.img")
    return "done"
