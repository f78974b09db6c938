"""Archives from a guest are hostile; archives for a guest keep what cp -a keeps."""

import io
import os
import stat
import tarfile

import pytest

from banger.client import archive
from banger.client.archive import Unpacker
from banger.host import tars
from banger.host.tars import ArchiveError


def member(name, kind=tarfile.REGTYPE, data=b"", mode=None, linkname=""):
    info = tarfile.TarInfo(name)
    if mode is None:
        mode = 0o755 if kind == tarfile.DIRTYPE else 0o644
    info.type, info.size, info.mode, info.linkname, info.mtime = (
        kind,
        len(data),
        mode,
        linkname,
        1000,
    )
    return info, data


def tar(*members):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for info, data in members:
            out.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def unpack(data, target, strip=1, warn=lambda _: None):
    with tars.open_stream(io.BytesIO(data)) as stream:
        first = tars.peek(stream)
        Unpacker(target, strip=strip, warn=warn).run(stream, first)


def tree(path):
    return sorted(str(p.relative_to(path)) for p in path.rglob("*"))


def test_a_tree_survives_packing_and_unpacking(tmp_path):
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "run.sh").write_bytes(b"#!/bin/sh\n")
    (source / "run.sh").chmod(0o750)
    os.utime(source / "run.sh", (1000, 1000))
    (source / "deep/er/data").write_bytes(os.urandom(300_000))
    os.link(source / "run.sh", source / "deep/same")
    (source / "link").symlink_to("/etc/passwd")
    (source / "empty").mkdir(mode=0o711)
    os.mkfifo(source / "pipe")
    buffer = io.BytesIO()
    archive.pack(buffer, source, "renamed")
    unpack(buffer.getvalue(), tmp_path / "target")
    target = tmp_path / "target"
    assert tree(target) == tree(source)
    assert (target / "deep/er/data").read_bytes() == (source / "deep/er/data").read_bytes()
    assert stat.S_IMODE((target / "run.sh").stat().st_mode) == 0o750
    assert (target / "run.sh").stat().st_mtime == 1000
    assert (target / "deep/same").samefile(target / "run.sh")
    assert os.readlink(target / "link") == "/etc/passwd"
    assert stat.S_IMODE((target / "empty").stat().st_mode) == 0o711
    assert stat.S_ISFIFO((target / "pipe").stat().st_mode)


def test_what_goes_to_a_guest_belongs_to_root(tmp_path):
    (tmp_path / "f").write_bytes(b"x")
    buffer = io.BytesIO()
    archive.pack(buffer, tmp_path, "")
    buffer.seek(0)
    with tarfile.open(fileobj=buffer) as packed:
        (info,) = packed.getmembers()
    assert (info.name, info.uid, info.gid, info.uname, info.gname) == ("f", 0, 0, "", "")


@pytest.mark.parametrize(
    "members",
    [
        [member("x/../../evil")],
        [member("/etc/evil")],
        [member("..")],
        [member("x", tarfile.DIRTYPE), member("x/" + "a/" * 3000 + "b")],
        [member("x", tarfile.DIRTYPE), member("x/h", tarfile.LNKTYPE, linkname="../../secret")],
        [member("x", tarfile.DIRTYPE), member("x/h", tarfile.LNKTYPE, linkname="/etc/shadow")],
        [member("x", tarfile.DIRTYPE), member("x/h", tarfile.LNKTYPE, linkname="x/never-sent")],
        [
            member("x", tarfile.DIRTYPE),
            member("x/d", tarfile.DIRTYPE),
            member("x/d", data=b"file over directory"),
        ],
        [member("x", tarfile.DIRTYPE), member("x/f", data=b"1"), member("x/f/below", data=b"2")],
    ],
)
def test_a_member_that_points_elsewhere_is_refused(tmp_path, members):
    secret = tmp_path / "secret"
    secret.write_text("keep")
    target = tmp_path / "a" / "b"
    target.parent.mkdir()
    with pytest.raises(ArchiveError):
        unpack(tar(*members), target)
    assert secret.read_text() == "keep"
    assert secret.stat().st_nlink == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "secret"]


def test_nothing_is_written_through_a_link_of_the_archive(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    target = tmp_path / "target"
    with pytest.raises(ArchiveError):
        unpack(
            tar(
                member("x", tarfile.DIRTYPE),
                member("x/l", tarfile.SYMTYPE, linkname=str(outside)),
                member("x/l/evil", data=b"1"),
            ),
            target,
        )
    assert tree(outside) == []


def test_nothing_is_written_through_a_link_that_is_there_already(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "kept").write_text("kept")
    target = tmp_path / "target"
    target.mkdir()
    (target / "dir").symlink_to(outside)
    (target / "file").symlink_to(outside / "kept")
    with pytest.raises(ArchiveError):
        unpack(tar(member("x", tarfile.DIRTYPE), member("x/dir/evil", data=b"1")), target)
    unpack(tar(member("x", tarfile.DIRTYPE), member("x/file", data=b"new")), target)
    assert (outside / "kept").read_text() == "kept"
    assert (target / "file").read_text() == "new"
    assert not (target / "file").is_symlink()


def test_set_id_bits_are_dropped_and_devices_left_out(tmp_path):
    said = []
    target = tmp_path / "t"
    unpack(
        tar(
            member("x", tarfile.DIRTYPE, mode=0o755),
            member("x/su", data=b"1", mode=0o6755),
            member("x/disk", tarfile.BLKTYPE),
        ),
        target,
        warn=said.append,
    )
    assert stat.S_IMODE((target / "su").stat().st_mode) == 0o755
    assert tree(target) == ["su"]
    assert len(said) == 1


def test_a_header_that_would_fill_the_memory_is_refused(tmp_path):
    info = tarfile.TarInfo("x")
    info.type, info.size = tarfile.XHDTYPE, 1 << 40
    data = info.tobuf(tarfile.GNU_FORMAT) + bytes(10240)
    with pytest.raises(ArchiveError, match="header"):
        unpack(data, tmp_path / "t")


def test_a_sparse_member_that_would_fill_the_disk_is_refused(tmp_path):
    info = tarfile.TarInfo("x")
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = b"77777777777\0"  # real size
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    with pytest.raises(ArchiveError, match="sparse"):
        unpack(bytes(header) + bytes(10240), tmp_path / "t")


@pytest.mark.parametrize("data", [b"", b"x" * 5000, b"\xff" * 512])
def test_what_is_no_archive_is_an_error(tmp_path, data):
    def first_member():
        with tars.open_stream(io.BytesIO(data)) as stream:
            if tars.peek(stream) is None:
                raise ArchiveError("empty")

    with pytest.raises(ArchiveError):
        first_member()


def test_an_archive_that_is_cut_is_an_error(tmp_path):
    whole = tar(member("x", data=b"y" * 50_000))
    with pytest.raises(ArchiveError):
        unpack(whole[:20_000], tmp_path / "t")


@pytest.mark.parametrize("how", ["other bytes in a header", "cut at a header", "cut in a header"])
def test_an_archive_without_its_end_is_an_error(tmp_path, how):
    whole = tar(*(member(name, data=b"y" * 1000) for name in "xyz"))
    at = len(tar(member("x", data=b"y" * 1000), member("y", data=b"y" * 1000)).rstrip(b"\0"))
    at += -at % tarfile.BLOCKSIZE
    assert whole[at : at + 2] == b"z\0"
    ends = {
        "other bytes in a header": whole[:at] + b"\xff" * 8 + whole[at + 8 :],
        "cut at a header": whole[:at],
        "cut in a header": whole[: at + 100],
    }
    with pytest.raises(ArchiveError, match="damaged"):
        unpack(ends[how], tmp_path / "t")


def test_files_that_cannot_be_read_again_and_read_only_directories_are_unpacked(tmp_path):
    data = tar(
        member("x", tarfile.DIRTYPE, mode=0o555),
        member("x/f", data=b"1", mode=0o000),
        member("x/d", tarfile.DIRTYPE, mode=0o500),
        member("x/d/g", data=b"2"),
    )
    unpack(data, tmp_path / "t")
    unpack(data, tmp_path / "t")  # again, over itself
    assert stat.S_IMODE((tmp_path / "t").stat().st_mode) == 0o555
    (tmp_path / "t").chmod(0o755)
    (tmp_path / "t/d").chmod(0o755)
    assert (tmp_path / "t/d/g").read_bytes() == b"2"
