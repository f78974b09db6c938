"""Registration where it meets the host: owners of files, another user's permissions, a disk that is really full."""

import json
import os
import subprocess

import pytest

from banger.host import fs
from banger.images.catalog import ImageCatalog
from banger.images.kernel import bzimage_release, extract_vmlinux
from banger.images.kernel import read_facts as kernel_facts
from banger.model.errors import HostLacksError
from banger.model.registration import Registration
from tests.framework import toy_register as toy
from tests.framework.small_disk import small_disk
from tests.framework.toy_root import bz_image, elf_kernel
from tests.host.test_image_build import place, user  # noqa: F401  fixtures
from tests.unit.images.test_register import MINE, as_stated

KERNEL = elf_kernel(MINE, more=toy.IN_ALL)
REGISTER = """import asyncio, json, sys
from pathlib import Path
from banger.images.catalog import ImageCatalog
from banger.model.errors import BangerError
from banger.model.registration import Registration
where, given = Path(sys.argv[1]), json.loads(sys.argv[2])
catalog = ImageCatalog(where / "images", where / "logs")
wish = Registration("mine", built_in=True, **{key: Path(path) for key, path in given.items()})
try:
    made = asyncio.run(catalog.register(wish, progress=lambda *words: None))
    print(json.dumps({"id": made.id, "seed": made.files["work-seed.img"].digest}))
except BangerError as error:
    print(json.dumps({"what": error.what, "detail": error.detail, "hint": error.hint}))
"""


def listed(image, directory):
    done = subprocess.run(
        ["/sbin/debugfs", "-R", f"ls -l {directory}", image], check=True, capture_output=True, text=True
    )  # fmt: skip
    return {words[-1]: words for line in done.stdout.splitlines() if (words := line.split())}


def files(place):  # noqa: F811  the fixture
    """A root file system with a private directory in /root, and a kernel that needs no modules."""
    rootfs = toy.rootfs(place / "rootfs.img", root__private__key=b"secret")
    for request in ("sif /root/private mode 040700", "sif /root/private/key mode 0100600", "sif /root/.bashrc uid 1000"):  # fmt: skip
        subprocess.run(["/sbin/debugfs", "-w", "-R", request, rootfs], check=True, capture_output=True)  # fmt: skip
    (place / "vmlinux").write_bytes(KERNEL)
    return {"rootfs": rootfs, "kernel": place / "vmlinux"}


def as_user(user, home, given):  # noqa: F811  the fixture
    """What the program said that another user ran."""
    home.mkdir(exist_ok=True)
    home.chmod(0o777)
    words = {key: str(path) for key, path in given.items()}
    process = user("-c", REGISTER, home, json.dumps(words), stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err.decode()
    return json.loads(out)


async def test_a_work_seed_is_made_out_of_the_roots_own_home(place):  # noqa: F811
    catalog = ImageCatalog(place / "images", place / "logs")
    wish = Registration("mine", built_in=True, **files(place))
    made = await catalog.register(wish, progress=lambda *words: None)
    as_stated(catalog, made)
    seed = place / "images" / made.id / "work-seed.img"
    owner = [str(os.geteuid()), str(os.getegid())]  # who made the toy root
    assert listed(seed, "/")["private"][1:5] == ["40700", "(2)", *owner]
    assert listed(seed, "/private")["key"][1:5] == ["100600", "(1)", *owner]
    assert listed(seed, "/")[".bashrc"][3] == "1000"
    subprocess.run(["/sbin/e2fsck", "-f", "-n", seed], check=True, capture_output=True)


async def test_an_ordinary_user_makes_the_same_image_as_root(place, user):  # noqa: F811
    given = files(place)
    catalog = ImageCatalog(place / "images", place / "logs")
    made = await catalog.register(
        Registration("mine", built_in=True, **given), progress=lambda *words: None
    )
    said = as_user(user, place / "home", given)
    assert said == {"id": made.id, "seed": made.files["work-seed.img"].digest}


@pytest.mark.skipif(os.geteuid() != 0, reason="root may read every file, so another user must try")
@pytest.mark.parametrize("option", ["rootfs", "kernel"])
def test_a_file_that_the_daemon_may_not_read_is_told_with_the_command(place, user, option):  # noqa: F811
    given = files(place)
    given[option].chmod(0o600)
    said = as_user(user, place / "home", given)
    assert f"{option} {given[option]} cannot be read by the daemon" in said["what"]
    assert said["hint"] == f"chmod a+r {given[option]}"
    images = place / "home" / "images"
    assert not images.exists() or [p.name for p in images.iterdir() if p.name != ".lock"] == []


async def test_a_disk_that_is_really_full_is_told_and_left_as_it_was(place, monkeypatch):  # noqa: F811
    rootfs = toy.rootfs(place / "big.img", size_kib=65536, root__big=os.urandom(40 << 20))
    (place / "k").write_bytes(KERNEL)
    with small_disk(place, 24) as mount:
        catalog = ImageCatalog(mount / "images", mount / "logs")
        wish = Registration("mine", rootfs=rootfs, kernel=place / "k", built_in=True)
        for free_bytes in (
            None,
            1 << 40,
        ):  # found out beforehand, and, if that was wrong, under way
            if free_bytes is not None:
                monkeypatch.setattr(fs, "free_bytes", lambda _: free_bytes)  # noqa: B023
            with pytest.raises(HostLacksError, match="no space") as raised:
                await catalog.register(wish, progress=lambda *words: None)
            assert "df -h" in raised.value.hint
            assert [p.name for p in (mount / "images").iterdir()] == [".lock"]


QUICK = {
    "gzip": "gzip -n -1", "bzip2": "bzip2 -1", "lzma": "lzma -0", "xz": "xz --check=crc32 --x86 --lzma2=preset=0",
    "lzo": "lzop -1", "lz4": "lz4 -l -1", "zstd": "zstd -1",
}  # fmt: skip


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", QUICK)
def test_debians_kernel_comes_out_of_every_compression(test_image, tmp_path, name):
    came = (test_image / "vmlinuz").read_bytes()
    vmlinux = (test_image / "vmlinux").read_bytes()
    assert extract_vmlinux(came) == vmlinux
    packed = subprocess.run([*QUICK[name].split(), "-c"], input=vmlinux, capture_output=True, check=True).stdout  # fmt: skip
    assert extract_vmlinux(bz_image(packed, None if name == "gzip" else len(vmlinux))) == vmlinux
    facts = kernel_facts(test_image / "vmlinux")
    assert facts.pvh
    assert facts.release == bzimage_release(came) != ""
