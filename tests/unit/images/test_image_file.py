"""An image as one file: the same bytes from the same image, the same image from the same bytes, and nothing else."""

import dataclasses
import hashlib
import io
import json
import os
import subprocess
import sys

import msgspec
import pytest

from banger.host import fs
from banger.images.exporting import portable
from banger.images.image_file import ImageFile, extents_of, write_image
from banger.images.seal import image_id, seal_file, write_manifest
from banger.model.errors import HostLacksError, InvalidInputError
from banger.model.manifest import FileEntry, ImageManifest
from tests.framework import toy_container as toy

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

BLOCK = 64 * 1024


@pytest.fixture
def image(tmp_path):
    """An image of small files: one of holes alone, one with many pieces, one without any hole."""
    directory = tmp_path / "image"
    directory.mkdir()
    with (directory / "rootfs.img").open("wb") as file:
        for piece in range(60):
            file.seek(piece * 3 * BLOCK)
            file.write(os.urandom(BLOCK if piece % 2 else 5))
        file.truncate(20 << 20)
    with (directory / "work-seed.img").open("wb") as file:
        file.truncate(9 << 30)
        file.seek((9 << 30) - 4096)
        file.write(b"end")
    (directory / "initramfs.img").write_bytes(b"i" * 1000)
    (directory / "vmlinux").write_bytes(os.urandom(100_000))
    files = {path.name: seal_file(path) for path in sorted(directory.iterdir())}
    manifest = ImageManifest(
        "", "mine", "toy", "1", "amd64", "2026-01-01T00:00:00.000Z", "", 20 << 20, "6.1", "rw", files
    )  # fmt: skip
    return directory, write_manifest(directory, manifest)


def export(image):
    directory, manifest = image
    buffer = io.BytesIO()
    write_image(buffer, manifest, directory, list(manifest.files))
    return buffer.getvalue()


def unpack(data, tmp_path, name="came"):
    path = tmp_path / "x.banger"
    path.write_bytes(data)
    target = tmp_path / name
    target.mkdir()
    with ImageFile(path) as file:
        return file.manifest, file.unpack(target, list(file.manifest.files)), target


def test_what_was_exported_comes_back_byte_by_byte_with_its_holes(image, tmp_path):
    directory, manifest = image
    data = export(image)
    assert data == export(image)
    came, files, target = unpack(data, tmp_path)
    assert came == manifest
    assert files == manifest.files
    for name in files:
        assert fs.sparse_digest(target / name) == fs.sparse_digest(directory / name)
        stored_bytes = sum(length for _, length in extents_of(directory / name))
        assert fs.allocated_bytes(target / name) <= stored_bytes + BLOCK
    assert len(data) < 9 << 20


def test_gnu_tar_reads_it_too(image, tmp_path):
    directory, _ = image
    packed = tmp_path / "x.banger"
    packed.write_bytes(export(image))
    subprocess.run(["tar", "--zstd", "-xf", packed, "-C", tmp_path, "rootfs.img"], check=True)
    assert hashlib.sha256((tmp_path / "rootfs.img").read_bytes()).digest() == hashlib.sha256((directory / "rootfs.img").read_bytes()).digest()  # fmt: skip


def test_extents_are_those_of_the_content_not_of_the_file_system(tmp_path):
    full, sparse = tmp_path / "full", tmp_path / "sparse"
    full.write_bytes(bytes(BLOCK) + b"x" * BLOCK + bytes(3 * BLOCK) + b"y")
    with sparse.open("wb") as file:
        file.seek(BLOCK)
        file.write(b"x" * BLOCK)
        file.seek(5 * BLOCK)
        file.write(b"y")
    assert extents_of(full) == extents_of(sparse) == [(BLOCK, BLOCK), (5 * BLOCK, 1)]


@pytest.mark.parametrize("share", [0.0001, 0.1, 0.5, 0.9, 0.9999])
def test_a_cut_file_is_refused(image, tmp_path, share):
    data = export(image)
    with pytest.raises(InvalidInputError, match=r"damaged|no exported|lacks") as raised:
        unpack(data[: int(len(data) * share)], tmp_path)
    assert raised.value.hint


@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
def test_a_changed_byte_is_refused(image, tmp_path, share):
    data = bytearray(export(image))
    data[int(len(data) * share)] ^= 1
    with pytest.raises(InvalidInputError):
        unpack(bytes(data), tmp_path)


def forged(image, change, *, files=None):
    """An export whose first document is changed, and whose id fits again unless that is changed too."""
    plain = zstd.decompress(export(image))
    size = int(plain[124:135], 8)
    head = json.loads(plain[512 : 512 + size])
    change(head)
    rest = plain[512 + -(-size // 512) * 512 :]
    return zstd.compress(toy.tar([toy.member("banger-image.json", json.dumps(head).encode())])[: 512 + -(-len(json.dumps(head)) // 512) * 512] + (rest if files is None else files))  # fmt: skip


def fitting(head):
    """Give the manifest the id of its content."""
    manifest = msgspec.convert(head["manifest"], type=ImageManifest)
    head["manifest"]["id"] = image_id(manifest)


@pytest.mark.parametrize("key", ["format", "version"])
def test_what_a_newer_banger_exported_is_refused(image, tmp_path, key):
    def change(head):
        (head if key == "format" else head["manifest"])[key] += 1

    with pytest.raises(InvalidInputError, match="newer banger"):
        unpack(forged(image, change), tmp_path)


def test_a_manifest_that_is_not_what_its_id_says_is_refused(image, tmp_path):
    """Else it could take the place of another image."""

    def change(head):
        head["manifest"]["cmdline"] = "init=/evil"

    with pytest.raises(InvalidInputError, match="not what its digest says"):
        unpack(forged(image, change), tmp_path)


def test_a_file_that_is_not_what_its_digest_says_is_refused(image, tmp_path):
    def change(head):
        head["manifest"]["files"]["vmlinux"]["digest"] = "0" * 64
        fitting(head)

    with pytest.raises(InvalidInputError, match=r"vmlinux in .* is not what its digest says"):
        unpack(forged(image, change), tmp_path)


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "manifest.json", "x"])
def test_a_file_that_no_image_has_is_refused(image, tmp_path, name):
    def change(head):
        head["manifest"]["files"][name] = head["manifest"]["files"]["vmlinux"]
        fitting(head)

    with pytest.raises(InvalidInputError, match="files that no image has"):
        unpack(forged(image, change), tmp_path)


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"format": "x"}', b"[" * 50_000, b"\xff" * 99])
def test_a_malformed_head_is_refused(tmp_path, content):
    packed = zstd.compress(toy.tar([toy.member("banger-image.json", content)]))
    with pytest.raises(InvalidInputError, match="malformed"):
        unpack(packed, tmp_path)


def test_a_damaged_image_is_not_exported(image):
    directory, _ = image
    path = directory / "vmlinux"
    path.chmod(0o644)
    path.write_bytes(b"x" * 100_000)
    with pytest.raises(HostLacksError, match="missing or damaged"):
        export(image)


def test_an_image_that_lost_its_name_is_exported_under_it(image):
    _, manifest = image
    renamed = dataclasses.replace(manifest, name=f"mine-{manifest.id}")
    assert portable(renamed) == manifest
    strange = dataclasses.replace(manifest, name="other", files={**manifest.files, "vmlinuz": FileEntry(1, "0")})  # fmt: skip
    assert portable(strange).id == image_id(strange)


def test_a_file_is_whole_or_not_there(tmp_path):
    target = tmp_path / "out"

    def fail():
        with fs.unseen_file(target, replace=False) as file:
            file.write(b"half")
            assert list(tmp_path.iterdir()) == []
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert list(tmp_path.iterdir()) == []
    with fs.unseen_file(target, replace=False) as file:
        file.write(b"whole")
    assert target.read_bytes() == b"whole"
    with pytest.raises(FileExistsError), fs.unseen_file(target, replace=False):
        pass
    with fs.unseen_file(target, replace=True) as file:
        file.write(b"new")
    assert target.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [target]
