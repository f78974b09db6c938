"""What no package may contain is found before anything opens it."""

import gzip
import lzma
import tarfile

import pytest

from banger.images.void import package as module
from banger.images.void.package import check_package
from banger.model.errors import InvalidInputError
from tests.framework.xbps_repository import member, tar_of, zstd_of

HEAD = [member("./props.plist", b"x"), member("./files.plist", b"x")]
GOOD = [
    *HEAD, member("./usr/bin/a", b"a"), member("./usr/bin/b", kind=tarfile.LNKTYPE, target="./usr/bin/a"),
    member("./usr/bin/c", kind=tarfile.SYMTYPE, target="/etc/../anywhere"), member("./usr/bin/sudo", b"s", mode=0o4755), member("./usr/lib", kind=tarfile.DIRTYPE),
]  # fmt: skip


def check(tmp_path, data):
    path = tmp_path / "p.xbps"
    path.write_bytes(data)
    check_package(path, "p-1_1")


@pytest.mark.parametrize("pack", [gzip.compress, lzma.compress, zstd_of])
def test_files_links_and_directories_may_be_in_it_however_it_is_compressed(tmp_path, pack):
    check(tmp_path, pack(tar_of(GOOD, compress=False)))


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (member("./../x", b"x"), "leads out"), (member("./a/../../x", b"x"), "leads out"), (member("/etc/x", b"x"), "leads out"), (member("../x", b"x"), "leads out"),
        (member("etc/x", b"x"), "leads out"), (member("./x", kind=tarfile.CHRTYPE), "neither"), (member("./x", kind=tarfile.BLKTYPE), "neither"), (member("./x", kind=tarfile.FIFOTYPE), "neither"),
        (member("./x", kind=tarfile.LNKTYPE, target="/etc/shadow"), "no member before"), (member("./x", kind=tarfile.LNKTYPE, target="../../etc/shadow"), "no member before"),
        (member("./x", kind=tarfile.LNKTYPE, target="./later"), "no member before"),
    ],
)  # fmt: skip
def test_a_member_that_leads_out_or_is_something_else_is_refused_by_name(tmp_path, bad, why):
    with pytest.raises(InvalidInputError, match="package p-1_1 is not one") as raised:
        check(tmp_path, tar_of([*HEAD, bad]))
    assert why in raised.value.detail
    assert raised.value.hint


@pytest.mark.parametrize(
    "data", [b"", b"no tar", tar_of(GOOD)[:-40], gzip.compress(b"x" * 2048, mtime=0), tar_of([member("./a", b"a")]), tar_of(GOOD)[:60] + b"?" * 40 + tar_of(GOOD)[100:]]
)  # fmt: skip
def test_what_is_damaged_or_no_package_is_refused(tmp_path, data):
    with pytest.raises(InvalidInputError, match="package p-1_1"):
        check(tmp_path, data)


def test_a_package_that_grows_without_end_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_MAX_PLAIN_BYTES", 1 << 16)
    with pytest.raises(InvalidInputError, match="not one") as raised:
        check(tmp_path, tar_of([*HEAD, member("./zeros", bytes(1 << 20))]))
    assert "more than" in raised.value.detail
