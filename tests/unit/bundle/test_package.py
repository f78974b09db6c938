"""A bundle made from a local tree: the same files give the same bytes, and what was made can be fetched."""

import gzip
import os
import shutil
import tarfile
from pathlib import Path

import pytest

from banger.bundle import elf, reading
from banger.bundle.check import look
from banger.bundle.fetch import Wish, fetch
from banger.bundle.package import Order, package
from banger.bundle.report import Silent
from banger.model.errors import BangerError, InvalidInputError, NotFoundError
from tests.framework.bundles import program, sha256

ARCHITECTURE = elf.host_architecture()


@pytest.fixture
def tree(tmp_path):
    path = tmp_path / "tree"
    (path / "images" / "debian").mkdir(parents=True)
    (path / "firecracker").write_bytes(program("firecracker"))
    (path / "jailer").write_bytes(program("jailer"))
    (path / "images" / "debian" / "rootfs.img").write_bytes(bytes(100_000) + b"end")
    (path / "README").write_text("not taken along")
    return path


def make(tree, out, **more):
    return package(Order(tree, out, **{"version": "1.14.0", **more}), Silent())


def test_what_is_made_can_be_fetched_and_is_whole(tree, tmp_path, root):
    made = make(
        tree, tmp_path / "out", urls=("https://example.org/bundles/", "https://example.net/x")
    )
    assert made.archive.name == f"firecracker-1.14.0-{ARCHITECTURE}.tar.gz"
    manifest = reading.load(made.manifest_path, pytest.fail)
    assert manifest == made.manifest
    assert manifest.sha256 == sha256(made.archive.read_bytes())
    assert manifest.urls == (
        f"https://example.org/bundles/{made.archive.name}", "https://example.net/x",
    )  # fmt: skip
    assert [file.path for file in manifest.files] == [
        "firecracker", "images/debian/rootfs.img", "jailer",
    ]  # fmt: skip
    assert [image.name for image in manifest.images] == ["debian"]
    assert fetch(root, Wish(manifest, made.archive), Silent())
    assert look(root).state == "ok"
    assert (root.current / "images/debian/rootfs.img").stat().st_mode & 0o777 == 0o444
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        made.archive.name, made.manifest_path.name,
    ]  # fmt: skip


def test_the_same_files_give_the_same_bytes_whoever_made_them_when_and_in_which_order(
    tree, tmp_path, monkeypatch
):
    first = make(tree, tmp_path / "one")
    other = tmp_path / "elsewhere"
    other.mkdir()
    for path in sorted(tree.rglob("*"), reverse=True):
        if path.is_file():
            (other / path.relative_to(tree)).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, other / path.relative_to(tree))
            os.utime(other / path.relative_to(tree), (1, 1))
            (other / path.relative_to(tree)).chmod(0o600)
    before = os.umask(0o077)
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    try:
        second = make(other, tmp_path / "two")
    finally:
        os.umask(before)
    assert first.archive.read_bytes() == second.archive.read_bytes()
    assert first.manifest_path.read_bytes() == second.manifest_path.read_bytes()
    with tarfile.open(first.archive) as archive:
        for member in archive:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
    assert gzip.decompress(first.archive.read_bytes())
    assert first.archive.read_bytes()[4:8] == bytes(4)  # gzip's own time


def test_an_unpacked_release_of_firecracker_is_taken_by_its_names_and_its_sums(tmp_path):
    tree = tmp_path / f"release-v1.14.0-{ARCHITECTURE}"
    tree.mkdir()
    sums = []
    for name in ("firecracker", "jailer", "seccompiler-bin"):
        path = tree / f"{name}-v1.14.0-{ARCHITECTURE}"
        path.write_bytes(program(name))
        (tree / f"{path.name}.debug").write_bytes(b"debug")
        sums.append(f"{sha256(path.read_bytes())}  ./{path.name}\n")
    (tree / "SHA256SUMS").write_text("".join(sums))
    made = make(tree, tmp_path / "out", version="")
    assert made.manifest.version == "1.14.0"
    assert [file.path for file in made.manifest.files] == ["firecracker", "jailer"]
    (tree / f"jailer-v1.14.0-{ARCHITECTURE}").write_bytes(program("tampered"))
    with pytest.raises(InvalidInputError, match="SHA256SUMS"):
        make(tree, tmp_path / "again", version="")
    assert list((tmp_path / "again").iterdir()) == []


def test_a_bundle_may_do_without_a_jailer(tree, tmp_path):
    (tree / "jailer").unlink()
    assert make(tree, tmp_path / "out").manifest.jailer is None


def spoil_no_firecracker(tree):
    (tree / "firecracker").unlink()


def spoil_two(tree):
    (tree / "firecracker").unlink()
    for version in ("1.0.0", "1.1.0"):
        (tree / f"firecracker-v{version}-{ARCHITECTURE}").write_bytes(program("x"))


def spoil_machine(tree):
    foreign = "aarch64" if ARCHITECTURE != "aarch64" else "x86_64"
    (tree / "jailer").write_bytes(program("x", foreign))


def spoil_text(tree):
    (tree / "firecracker").write_bytes(b"404 not found")


def spoil_link(tree):
    (tree / "jailer").unlink()
    (tree / "jailer").symlink_to("firecracker")


def spoil_folder(tree):
    (tree / "jailer").unlink()
    (tree / "jailer").mkdir()


def spoil_image_link(tree):
    (tree / "images" / "debian" / "link").symlink_to("/etc/shadow")


def spoil_image_pipe(tree):
    os.mkfifo(tree / "images" / "debian" / "pipe")


def spoil_image_name(tree):
    (tree / "images" / "debian" / "a name").write_bytes(b"x")


@pytest.mark.parametrize(
    "spoil",
    [value for name, value in list(globals().items()) if name.startswith("spoil_")],
    ids=lambda spoil: spoil.__name__,
)
def test_a_tree_that_cannot_be_a_bundle_is_refused_and_nothing_is_written(tree, tmp_path, spoil):
    spoil(tree)
    with pytest.raises(BangerError) as caught:
        make(tree, tmp_path / "out")
    assert caught.value.hint or caught.value.detail or ": " in caught.value.what
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize(
    "words",
    [
        {"version": ""}, {"version": "1/2"}, {"version": 'a"b'}, {"name": "Fire"}, {"architecture": "vax"},
        {"urls": ("ftp://example.org/",)}, {"urls": ('https://example.org/"',)},
    ],
)  # fmt: skip
def test_words_that_no_manifest_may_hold_are_refused(tree, tmp_path, words):
    with pytest.raises((InvalidInputError, NotFoundError)):
        make(tree, tmp_path / "out", **words)
    assert not (tmp_path / "out").exists() or list((tmp_path / "out").iterdir()) == []


def test_a_tree_that_is_none_and_a_place_that_is_none_are_named(tree, tmp_path):
    with pytest.raises(NotFoundError, match="is no directory"):
        make(tree / "README", tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(BangerError, match="cannot be written"):
        make(tree, tmp_path / "file")
    assert Path(tmp_path / "file").read_text() == ""
