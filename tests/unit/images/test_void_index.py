"""An index is nobody's word: what is malformed in it is refused, and nothing in it grows without bound."""

import gzip
import plistlib

import pytest

from banger.images.void import index as module
from banger.images.void.index import parse_index, read_plist
from banger.model.errors import InvalidInputError
from tests.framework.xbps_repository import member, tar_of, zstd_of

GOOD = {
    "pkgver": "bash-5.2.21_1", "architecture": "x86_64", "filename-sha256": "0" * 64, "filename-size": 7,
}  # fmt: skip


def repodata(packages=None, meta=b"", members=None):
    listed = [member("index.plist", plistlib.dumps({"bash": GOOD} if packages is None else packages)), member("index-meta.plist", meta)]  # fmt: skip
    return tar_of(listed if members is None else members)


def test_an_index_tells_its_packages_and_key():
    found = parse_index(repodata(meta=plistlib.dumps({"public-key": b"PEM"})))
    entry = found.entry("bash", "x86_64")
    assert (entry.file_name, entry.size_bytes) == ("bash-5.2.21_1.x86_64.xbps", 7)
    assert found.key == b"PEM"


@pytest.mark.parametrize(
    "meta", [b"", b"DEADBEEF", plistlib.dumps({}), plistlib.dumps({"public-key": 7})]
)
def test_an_index_that_is_not_signed_has_no_key(meta):
    assert parse_index(repodata(meta=meta)).key == b""


def test_zstd_is_read_as_well():
    assert parse_index(zstd_of(gzip.decompress(repodata()))).packages == {"bash": GOOD}


def test_noarch_packages_fit_every_architecture_and_others_do_not():
    index = parse_index(repodata({"bash": {**GOOD, "architecture": "noarch"}}))
    assert index.entry("bash", "x86_64").file_name.endswith(".noarch.xbps")
    index = parse_index(repodata({"bash": {**GOOD, "architecture": "aarch64"}}))
    with pytest.raises(InvalidInputError, match="malformed"):
        index.entry("bash", "x86_64")


@pytest.mark.parametrize(
    "change",
    [
        {"pkgver": "../../etc-1_1"}, {"pkgver": "bash-1_1/../x"}, {"pkgver": "zsh-5.2_1"}, {"pkgver": "bash"}, {"pkgver": 7},
        {"filename-sha256": "0" * 63}, {"filename-sha256": "A" * 64}, {"filename-sha256": None},
        {"filename-size": -1}, {"filename-size": 0}, {"filename-size": "7"}, {"filename-size": 1 << 60},
        {"architecture": "../x"}, {"architecture": ["x86_64"]},
    ],
)  # fmt: skip
def test_a_malformed_entry_is_refused(change):
    entry = {key: value for key, value in {**GOOD, **change}.items() if value is not None}
    index = parse_index(repodata({"bash": entry}))
    with pytest.raises(InvalidInputError, match="malformed") as raised:
        index.entry("bash", "x86_64")
    assert "bash" in raised.value.detail


def test_an_unknown_package_is_refused():
    with pytest.raises(InvalidInputError, match="no package 'zsh'"):
        parse_index(repodata()).entry("zsh", "x86_64")


@pytest.mark.parametrize(
    "data",
    [
        repodata(members=[]),
        repodata(members=[member("index-meta.plist", b""), member("index.plist", plistlib.dumps({}))]),
        repodata(members=[member("./index.plist", plistlib.dumps({})), member("index-meta.plist", b"")]),
        repodata(members=[member("index.plist", b"<plist><array/></plist>"), member("index-meta.plist", b"")]),
        repodata(members=[member("index.plist", b"bplist00"), member("index-meta.plist", b"")]),
        repodata(members=[member("index.plist", plistlib.dumps({})), member("index-meta.plist", b"half a")]),
        repodata()[:-30],
        gzip.compress(b"no tar", mtime=0),
        b"nothing compressed",
        b"",
    ],
)  # fmt: skip
def test_what_is_no_index_is_refused(data):
    with pytest.raises(InvalidInputError):
        parse_index(data)


def test_an_index_that_grows_without_end_is_refused(monkeypatch):
    monkeypatch.setattr(module, "_MAX_PLAIN_BYTES", 1 << 20)
    with pytest.raises(InvalidInputError, match="larger than"):
        parse_index(gzip.compress(bytes(1 << 22)))


def test_entities_of_a_property_list_are_refused():
    lol = b'<?xml version="1.0"?><!DOCTYPE plist [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><plist><dict><key>&b;</key><true/></dict></plist>'
    assert read_plist(lol) is None
    assert read_plist(plistlib.dumps({"a": 1})) == {"a": 1}
