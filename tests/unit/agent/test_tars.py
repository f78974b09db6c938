"""Trees as tar streams: what goes in comes out, however the bytes are cut."""

import io
import os
import socket
import subprocess
import tarfile

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from banger_agent import tars
from banger_agent.http import BadRequest


def packed(path, name="tree", size=1000, head=4):
    out = io.BytesIO()
    tars.pack(str(path), name, tars.Blocks(lambda view: out.write(view[head:]), size, head))
    return out.getvalue()


@pytest.fixture
def tree(tmp_path):
    tree = tmp_path / "tree"
    (tree / "below").mkdir(parents=True)
    (tree / "random").write_bytes(os.urandom(100_000))
    (tree / "zeros").write_bytes(bytes(300_000) + b"end" + bytes(5000))
    (tree / "empty").touch()
    (tree / "below" / "link").symlink_to("../random")
    (tree / "below" / "hard").hardlink_to(tree / "random")
    (tree / "below" / "record").write_bytes(b"x" * 512)
    return tree


@pytest.mark.parametrize("size", [1, 511, 512, 513, 4096, 1 << 20])
def test_a_tree_is_a_tar_that_tarfile_reads_whatever_the_block(tree, size):
    data = packed(tree, size=size)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        names = archive.getnames()
        assert names[0] == "tree"
        assert sorted(names) == sorted(
            ["tree", *(f"tree/{path.relative_to(tree)}" for path in tree.rglob("*"))]
        )
        assert (
            archive.extractfile("tree/below/hard").read()
            == archive.extractfile("tree/random").read()
        )
        assert archive.extractfile("tree/zeros").read() == (tree / "zeros").read_bytes()


def reused(data, cuts):
    """``data`` as a port gives it: each piece lies in the memory of the one before."""
    memory = memoryview(bytearray(max(*cuts, len(data))))
    at = 0
    for cut in [*cuts, len(data)]:
        piece = data[at : at + cut]
        at += cut
        if not piece:
            return
        memory[:] = b"\xff" * len(memory)
        memory[: len(piece)] = piece
        yield memory[: len(piece)]


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(cuts=st.lists(st.integers(1, 200_000), min_size=1, max_size=30))
def test_a_stream_is_unpacked_however_it_is_cut(tree, tmp_path_factory, cuts):
    data = packed(tree)
    target = tmp_path_factory.mktemp("target")

    tars.unpack(reused(data, cuts), str(target))
    for path in tree.rglob("*"):
        copy = target / "tree" / path.relative_to(tree)
        assert copy.is_symlink() == path.is_symlink()
        if path.is_file():
            assert copy.read_bytes() == path.read_bytes()
        assert copy.lstat().st_mode == path.lstat().st_mode
        assert copy.lstat().st_mtime == pytest.approx(path.lstat().st_mtime, abs=1e-6)
    assert (target / "tree/random").samefile(target / "tree/below/hard")


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9])
def test_a_stream_that_ends_early_is_refused(tree, tmp_path, part):
    data = packed(tree)
    with pytest.raises(BadRequest):
        tars.unpack(iter([data[: int(len(data) * part)]]), str(tmp_path))


def members_of(data):
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        return [(member.name, member.offset) for member in archive]


@pytest.mark.parametrize("how", ["other bytes in a header", "cut at a header", "cut in a header"])
def test_an_archive_without_its_end_is_refused(tree, tmp_path, how):
    data = bytearray(packed(tree))
    _, at = members_of(data)[-1]
    if how == "other bytes in a header":
        data[at : at + 8] = b"\xff" * 8
    else:
        del data[at + (100 if how == "cut in a header" else 0) :]
    assert len(members_of(data)) > 2, "tarfile itself says nothing"
    with pytest.raises(BadRequest, match="the body is no tar archive"):
        tars.unpack(iter([bytes(data)]), str(tmp_path))


def test_long_runs_of_zeros_take_no_room(tree, tmp_path):
    (tree / "sparse").write_bytes(bytes(10 << 20) + b"x")
    data = packed(tree)
    (tmp_path / "target").mkdir()
    chunks = (data[at : at + 65536] for at in range(0, len(data), 65536))
    tars.unpack(chunks, str(tmp_path / "target"))
    copy = tmp_path / "target" / "tree" / "sparse"
    assert copy.stat().st_size == (10 << 20) + 1
    assert copy.stat().st_blocks * 512 < 1 << 20


def test_sockets_are_left_out_and_pipes_are_kept(tree):
    os.mkfifo(tree / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tree / "socket"))
        with tarfile.open(fileobj=io.BytesIO(packed(tree))) as archive:
            assert archive.getmember("tree/pipe").isfifo()
            assert "tree/socket" not in archive.getnames()


def test_a_file_that_vanishes_while_its_folder_is_read_is_left_out(tree, monkeypatch):
    listdir = os.listdir
    monkeypatch.setattr(tars.os, "listdir", lambda path: [*listdir(path), "vanished"])
    with tarfile.open(fileobj=io.BytesIO(packed(tree))) as archive:
        assert "tree/random" in archive.getnames()
        assert "tree/vanished" not in archive.getnames()


def test_a_very_deep_tree_is_packed(tmp_path):
    here = os.getcwd()
    try:
        os.chdir(tmp_path)
        for _ in range(1200):
            os.mkdir("d")
            os.chdir("d")
        os.chdir(here)
        with tarfile.open(fileobj=io.BytesIO(packed(tmp_path, "t"))) as archive:
            assert len(archive.getnames()) == 1201
    finally:
        os.chdir(here)
        subprocess.run(["rm", "-rf", tmp_path / "d"], check=True)  # too deep for pytest's own
