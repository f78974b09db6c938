"""Equal inputs, equal bytes: tar -> tree -> ext4, with real tools, wherever and whenever it is done."""

import os
import re
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from banger.host import fs
from banger.images.ext4 import make_ext4, unpack
from banger.images.sandbox import remove_mapped
from tests.framework.toy_root import root_tar

EPOCH_S = 1767225600
MIB = 1 << 20


def many():
    """A few hundred files in no order, some with owners and modes of their own."""
    names = [f"./srv/{'xyz'[n % 3]}/file-{n * 7919 % 1000:03}" for n in range(300)]
    return [
        (name, name.encode() * (n % 50), n % 5, 0o644 | (n % 2) << 6)
        for n, name in enumerate(names)
    ]


@pytest.fixture
def tar(tmp_path):
    return root_tar(tmp_path / "root.tar", files=many())


async def image_of(tar, directory, name="rootfs.img"):
    tree = directory / "tree"
    tree.mkdir(parents=True)
    await unpack(tar, tree, exclude=("./dev/*",))
    await make_ext4(
        tree, directory / name, 256 * MIB, "banger-root", epoch_s=EPOCH_S, journal_mib=16
    )
    await remove_mapped(tree)
    return directory / name


def shuffled(tar, path):
    """The same members in another order, as another file system would give them: directories first, files backwards."""
    with tarfile.open(tar) as source, tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as target:
        members = source.getmembers()
        directories = [m for m in members if m.isdir()]
        for member in directories + [m for m in reversed(members) if not m.isdir()]:
            target.addfile(member, source.extractfile(member) if member.isfile() else None)
    return path


def debugfs(image, *requests):
    script = "".join(f"{request}\n" for request in requests).encode()
    done = subprocess.run(
        ["/sbin/debugfs", "-f", "-", image], input=script, capture_output=True, check=True
    )
    return done.stdout.decode()


async def test_the_same_tar_gives_the_same_bytes_whatever_the_order_the_time_and_the_file_system(
    tar, tmp_path
):
    first = await image_of(tar, tmp_path / "one")
    other_order = await image_of(shuffled(tar, tmp_path / "shuffled.tar"), tmp_path / "two")
    assert fs.sparse_digest(first) == fs.sparse_digest(other_order)
    in_memory = Path("/dev/shm") / f"banger-test-{os.getpid()}"
    try:
        assert fs.sparse_digest(await image_of(tar, in_memory)) == fs.sparse_digest(first)
    finally:
        fs.remove_tree(in_memory)


async def test_another_content_gives_other_bytes(tar, tmp_path):
    first = await image_of(tar, tmp_path / "one")
    other = root_tar(tmp_path / "other.tar", files=[*many(), ("./srv/more", b"x", 0, 0o644)])
    assert fs.sparse_digest(first) != fs.sparse_digest(await image_of(other, tmp_path / "two"))


async def test_the_file_system_is_clean_sparse_and_has_every_owner_mode_and_time(tar, tmp_path):
    image = await image_of(tar, tmp_path / "one")
    checked = subprocess.run(
        ["/sbin/e2fsck", "-fn", image], capture_output=True, text=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    assert image.stat().st_size == 256 * MIB
    assert fs.allocated_bytes(image) < 24 * MIB
    said = debugfs(image, "stat /home/me/file")
    assert re.search(r"Mode:\s+04750", said)
    assert re.search(r"User:\s+1000\s+Group:\s+1000", said)
    seconds = {int(word, 16) for word in re.findall(r"[ac]time: 0x([0-9a-f]{8})", said)}
    assert seconds == {EPOCH_S}
    assert f"mtime: 0x{1_600_000_000:08x}" in said
    assert "null" not in debugfs(image, "ls -l /dev")
    assert "banger-root" in debugfs(image, "stats -h")


async def test_nothing_of_subordinate_owners_is_left_of_the_tree(tar, tmp_path):
    await image_of(tar, tmp_path / "one")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["rootfs.img"]
    assert stat.S_ISREG((tmp_path / "one" / "rootfs.img").stat().st_mode)
