"""One layer that somebody else made: what is taken, what is left out, and what is refused before it costs memory or disk."""

import bz2
import gzip
import io
import lzma
import resource
import sys
import tarfile

import pytest

from banger.images import layers
from banger.images.flatten import Source, scan
from banger.images.layers import Budget, Layer
from banger.images.oci import LayerFile
from banger.images.root_tree import RootTree
from banger.model.errors import InvalidInputError
from tests.framework import toy_container as toy

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd


def read(data, budget=None):
    layer = Layer(io.BytesIO(data), data[:4096], "layer 1", budget or Budget())
    return [member for member, _ in layer.members()], layer


def refused(data, match, budget=None):
    with pytest.raises(InvalidInputError, match=match) as raised:
        read(data, budget)
    assert raised.value.hint
    return raised.value


GOOD = toy.tar([toy.member("./a/"), toy.member("a/f", b"data", uid=7, gid=8, mode=0o4755, mtime=5), toy.symlink("/s", "a/f"), toy.hard_link("h", "/a/f")])  # fmt: skip


@pytest.mark.parametrize("pack", [bytes, gzip.compress, bz2.compress, lzma.compress, zstd.compress])
def test_members_come_with_owner_mode_and_time_from_every_compression(pack):
    found, layer = read(pack(GOOD))
    assert [(m.path, m.kind) for m in found] == [(("a",), "directory"), (("a", "f"), "file"), (("s",), "symlink"), (("h",), "link")]  # fmt: skip
    assert (found[1].uid, found[1].gid, found[1].mode, found[1].mtime) == (7, 8, 0o4755, 5)
    assert found[3].link == ("a", "f")
    assert layer.stream.digest == toy.digest(GOOD)


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstd.compress])
def test_streams_in_a_row_are_one_and_a_cut_one_is_refused(pack):
    half = len(GOOD) // 2
    assert len(read(pack(GOOD[:half]) + pack(GOOD[half:]))[0]) == 4
    packed = pack(GOOD)
    refused(packed[:-7], "damaged")


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/../x", "a/.."])
def test_a_name_that_leaves_the_root_is_refused(name):
    refused(toy.tar([toy.member(name, b"")]), "leaves the root")
    refused(toy.tar([toy.member("ok", b""), toy.hard_link("l", name)]), "leaves the root")


@pytest.mark.parametrize(
    "name", ["x" * 256, "/".join(["d"] * 300), "n/" * 100 + "y" * 250 + "/z" * 1000]
)
def test_a_name_that_no_file_system_has_is_refused(name):
    refused(toy.tar([toy.member(name, b"")]), "too long")


def test_devices_are_left_out_and_counted_and_fifos_stay():
    budget = Budget()
    data = toy.tar([
        toy.member("dev/sda", type=tarfile.BLKTYPE, devmajor=8), toy.member("dev/mem", type=tarfile.CHRTYPE, devmajor=1, devminor=1),
        toy.member("run/pipe", type=tarfile.FIFOTYPE),
    ])  # fmt: skip
    found, _ = read(data, budget)
    assert [m.kind for m in found] == ["fifo"]
    assert str(budget.left_out) == "2 devices left out"


def test_owners_that_no_namespace_has_are_nobody():
    budget = Budget()
    found, _ = read(toy.tar([toy.member("f", b"", uid=1 << 30, gid=-0)]), budget)
    assert (found[0].uid, found[0].gid) == (65534, 0)
    assert "1 owners" in str(budget.left_out)


def sparse(size, name="f"):
    info = tarfile.TarInfo(name)
    info.type, info.size = tarfile.GNUTYPE_SPARSE, 512
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[386:410] = tarfile.itn(0, 12, tarfile.GNU_FORMAT) + tarfile.itn(512, 12, tarfile.GNU_FORMAT)  # fmt: skip
    header[483:495] = tarfile.itn(size, 12, tarfile.GNU_FORMAT)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return bytes(header) + bytes(512) + bytes(1024)


def test_a_sparse_file_of_a_pebibyte_is_refused_and_a_small_one_is_read():
    refused(sparse(1 << 50), "with a size of 1125899906842624 bytes")
    found, _ = read(sparse(1 << 20))
    assert found[0].size_bytes == 1 << 20


def test_many_sparse_files_are_bounded_together():
    one = sparse(layers.MAX_ROOT_BYTES)[:-1024]
    budget = Budget()
    read(one * 2 + bytes(1024), budget)
    assert budget.bytes_left < 0


def test_too_many_files_are_refused(monkeypatch):
    refused(toy.tar(toy.member(str(n), b"") for n in range(11)), "over 500000 files", Budget(members=10))  # fmt: skip


def test_a_bomb_is_refused_where_its_bound_is():
    bomb = gzip.compress(toy.tar([toy.member("big", bytes(1 << 20))]) + bytes(200 << 20), 1)
    refused(bomb, "larger than", Budget(bytes_left=1 << 20))


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_would_fill_the_memory_is_refused(kind):
    info = tarfile.TarInfo("long")
    info.type, info.size = kind, 8 << 30
    refused(gzip.compress(info.tobuf(tarfile.GNU_FORMAT) + bytes(64 << 20), 1), "damaged|too large")


def test_headers_in_a_row_without_end_are_refused():
    info = tarfile.TarInfo("long")
    info.type, info.size = tarfile.GNUTYPE_LONGNAME, 1
    refused(gzip.compress((info.tobuf(tarfile.GNU_FORMAT) + bytes(512)) * 50_000, 1), "damaged|too large")  # fmt: skip


@pytest.mark.parametrize("data", [b"", b"x" * 5000, GOOD[:700], GOOD[:1100] + b"\xff" * 4000, b"\x1f\x8b" + b"x" * 100])  # fmt: skip
def test_what_is_no_tar_or_ends_early_is_refused(data):
    refused(data, "damaged or no tar")


@pytest.mark.parametrize("kind", [b"Z", b"V", b"9"])
def test_a_member_of_an_unknown_type_is_refused(kind):
    info = tarfile.TarInfo("odd")
    info.type = kind
    refused(info.tobuf(tarfile.GNU_FORMAT) + bytes(1024), "unknown type")


@pytest.mark.slow
def test_a_hundred_thousand_files_stay_within_memory():
    data = toy.tar([toy.member(f"d{n // 1000}/f{n}", b"x") for n in range(100_000)])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    tree = RootTree()
    source = Source(LayerFile("l", "layer 1"), lambda: (io.BytesIO(data), len(data)))
    scan(source, 0, tree, {}, Budget())
    assert sum(1 for _ in tree.entries()) == 100_101
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 400_000  # KiB
