"""Files: atomic, sparse, bounded, gone."""

import errno
import os
import stat
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger.host import fs

OTHER_FILE_SYSTEM = Path("/dev/shm")
MIB = 1 << 20


def sparse(path, *data_at, size=8 * MIB):
    with path.open("wb") as file:
        file.truncate(size)
        for position in data_at:
            file.seek(position)
            file.write(b"data" * 1024)
    return path


def test_an_atomic_write_replaces_content_and_mode_and_leaves_no_temporary(tmp_path):
    path = tmp_path / "file"
    fs.write_atomic(path, b"old")
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    fs.write_atomic(path, b"new", mode=0o644)
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    assert os.listdir(tmp_path) == ["file"]


def test_an_atomic_write_that_fails_keeps_the_old_content(tmp_path, monkeypatch):
    path = tmp_path / "file"
    fs.write_atomic(path, b"old")

    def full(_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="full"):
        fs.write_atomic(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]


def test_what_a_killed_maker_left_is_swept_and_nothing_else(tmp_path):
    kept = [tmp_path / name for name in ("banger.db", ".banger-other", f"{fs.TEMPORARY}fresh")]
    for path in kept:
        path.write_bytes(b"")
    directory, file = tmp_path / f"{fs.TEMPORARY}key", tmp_path / f"{fs.TEMPORARY}known_hosts-x"
    directory.mkdir()
    (directory / "key").write_bytes(b"private")
    file.write_bytes(b"")
    link = tmp_path / f"{fs.TEMPORARY}link"
    link.symlink_to(tmp_path)
    for path in (directory, file, link):
        os.utime(path, (1, 1), follow_symlinks=False)
    fs.sweep_temporaries(tmp_path)
    assert sorted(tmp_path.iterdir()) == sorted(kept)
    fs.sweep_temporaries(tmp_path / "missing")


def test_a_private_directory_is_made_so_even_if_it_was_open(tmp_path):
    path = tmp_path / "a" / "b"
    fs.make_private_dir(path)
    path.chmod(0o755)
    fs.make_private_dir(path)
    assert stat.S_IMODE(path.stat().st_mode) == 0o700


def test_removing_a_tree_follows_no_link_and_may_be_repeated(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").touch()
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "link").symlink_to(kept)
    fs.remove_tree(tree)
    fs.remove_tree(tree)
    (tmp_path / "link").symlink_to(kept)
    fs.remove_tree(tmp_path / "link")
    assert os.listdir(tmp_path) == ["kept"]
    assert (kept / "file").exists()


def test_a_tree_in_which_somebody_else_removes_things_too_goes_wholly(tmp_path, monkeypatch):
    tree, unlink, others = tmp_path / "tree", os.unlink, []
    (tree / "sub").mkdir(parents=True)
    for number in range(5):
        (tree / "sub" / str(number)).touch()

    def too_late(name, **options):
        unlink(name, **options)
        if len(others) < 3:
            others.append(name)
            raise FileNotFoundError(2, "No such file or directory", name)

    monkeypatch.setattr(os, "unlink", too_late)
    fs.remove_tree(tree)
    assert len(others) == 3
    assert not tree.exists()


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_clone_has_the_same_content_and_the_same_holes(tmp_path, elsewhere):
    source = sparse(tmp_path / "source", 0, 3 * MIB, 7 * MIB)
    directory = OTHER_FILE_SYSTEM if elsewhere else tmp_path
    target = directory / f"banger-test-clone-{os.getpid()}"
    try:
        assert fs.clone_file(source, target) in {"reflink", "sparse"}
        assert target.read_bytes() == source.read_bytes()
        assert fs.allocated_bytes(target) < MIB
        assert stat.S_IMODE(target.stat().st_mode) == 0o600
    finally:
        target.unlink()


def test_a_clone_works_where_the_kernel_cannot_copy(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EXDEV, "cross-device")

    monkeypatch.setattr(os, "copy_file_range", refuse)
    monkeypatch.setattr(fs.fcntl, "ioctl", refuse)
    source = sparse(tmp_path / "source", 0, 3 * MIB)
    assert fs.clone_file(source, tmp_path / "target") == "sparse"
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert fs.allocated_bytes(tmp_path / "target") < MIB


def test_a_clone_of_an_empty_file_and_of_only_a_hole_work(tmp_path):
    for size in (0, 5 * MIB):
        source = sparse(tmp_path / f"source{size}", size=size)
        fs.clone_file(source, tmp_path / f"target{size}")
        assert (tmp_path / f"target{size}").stat().st_size == size


def test_a_clone_never_replaces_a_file(tmp_path):
    source, target = sparse(tmp_path / "source", 0), tmp_path / "target"
    target.write_text("mine")
    with pytest.raises(FileExistsError):
        fs.clone_file(source, target)
    assert target.read_text() == "mine"


def test_a_clone_that_fails_leaves_nothing(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full)
    monkeypatch.setattr(
        fs.fcntl, "ioctl", lambda *_: (_ for _ in ()).throw(OSError(errno.EOPNOTSUPP, "no"))
    )
    with pytest.raises(OSError, match="full"):
        fs.clone_file(sparse(tmp_path / "source", 0), tmp_path / "target")
    assert os.listdir(tmp_path) == ["source"]


def refuse_reflinks(monkeypatch):
    def refuse(*_):
        raise OSError(errno.EOPNOTSUPP, "no")

    monkeypatch.setattr(fs.fcntl, "ioctl", refuse)


def test_a_file_that_nobody_changes_is_shared_and_read_only(tmp_path):
    source = sparse(tmp_path / "source", 0)
    source.chmod(0o444)
    assert fs.share_file(source, tmp_path / "target") in {"reflink", "link"}
    assert (tmp_path / "target").read_bytes() == source.read_bytes()
    assert stat.S_IMODE((tmp_path / "target").stat().st_mode) == 0o444


def test_where_blocks_cannot_be_shared_the_file_is(tmp_path, monkeypatch):
    refuse_reflinks(monkeypatch)
    source = sparse(tmp_path / "source", 0)
    assert fs.share_file(source, tmp_path / "target") == "link"
    assert (tmp_path / "target").samefile(source)
    with pytest.raises(FileExistsError):
        fs.share_file(source, tmp_path / "target")


def test_where_nothing_can_be_shared_it_is_copied(tmp_path):
    source = sparse(tmp_path / "source", 0)
    target = OTHER_FILE_SYSTEM / f"banger-test-share-{os.getpid()}"
    try:
        assert fs.share_file(source, target) == "sparse"
        assert target.read_bytes() == source.read_bytes()
    finally:
        target.unlink()


def test_a_copy_and_a_digest_can_be_ended_between_their_pieces(tmp_path, monkeypatch):
    refuse_reflinks(monkeypatch)
    monkeypatch.setattr(fs, "_PIECE_BYTES", 4096)
    source = tmp_path / "source"
    source.write_bytes(os.urandom(MIB))
    calls = []

    def between():
        calls.append(1)
        if len(calls) == 3:
            raise KeyError("enough")

    with pytest.raises(KeyError):
        fs.clone_file(source, tmp_path / "target", between=between)
    assert os.listdir(tmp_path) == ["source"]
    calls.clear()
    with pytest.raises(KeyError):
        fs.sparse_digest(source, between=between)


def test_a_digest_does_not_depend_on_holes(tmp_path):
    one = sparse(tmp_path / "one", 70000)
    two = tmp_path / "two"
    two.write_bytes(one.read_bytes())
    assert fs.sparse_digest(one) == fs.sparse_digest(two)


@settings(
    max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None
)
@given(st.integers(0, 300_000), st.integers(1, 255))
def test_a_digest_changes_with_any_byte_and_with_the_size(tmp_path, position, byte):
    path = tmp_path / "file"
    path.write_bytes(bytes(300_001))
    before = fs.sparse_digest(path)
    with path.open("r+b") as file:
        file.seek(position)
        file.write(bytes([byte]))
    assert fs.sparse_digest(path) != before
    with path.open("r+b") as file:
        file.seek(position)
        file.write(b"\0")
    assert fs.sparse_digest(path) == before
    os.truncate(path, 300_002)
    assert fs.sparse_digest(path) != before


def test_length_counts_holes_and_allocation_does_not(tmp_path):
    path = sparse(tmp_path / "file", 0)
    assert fs.length_bytes(path) == 8 * MIB
    assert 4096 <= fs.allocated_bytes(path) < MIB
    assert (fs.length_bytes(tmp_path / "no"), fs.allocated_bytes(tmp_path / "no")) == (0, 0)


def test_free_space_is_what_an_ordinary_user_may_write(monkeypatch):
    block_size, fragment_size, blocks, free, for_users = 1 << 20, 4096, 1000, 500, 300
    status = os.statvfs_result((block_size, fragment_size, blocks, free, for_users, 0, 0, 0, 0, 255))  # fmt: skip
    monkeypatch.setattr(os, "statvfs", {Path("/somewhere"): status}.__getitem__)
    assert fs.free_bytes(Path("/somewhere")) == 300 * 4096


def test_asking_for_reflinks_leaves_nothing(tmp_path):
    assert fs.supports_reflink(tmp_path) in {True, False}
    assert os.listdir(tmp_path) == []


def test_a_tail_is_the_end_or_all_or_nothing(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert fs.read_tail(path, 3) == b"789"
    assert fs.read_tail(path, 100) == b"0123456789"
    assert fs.read_tail(tmp_path / "no", 3) == b""
