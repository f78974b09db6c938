"""The download cache: content-addressed, bounded, and nothing in it is believed."""

import hashlib
import os

import pytest

from banger.images import downloads
from banger.images.downloads import Downloads
from banger.images.fill_archives import archive_name, fill

INDEX = """Package: zlib1g
Version: 1:1.2+dfsg~1
Architecture: amd64
Filename: pool/z
SHA256: {digest}
Size: 3

Package: other
Version: 1
Architecture: all
SHA256: {other}
"""


def digest(data):
    return hashlib.sha256(data).hexdigest()


@pytest.fixture
def cache(tmp_path):
    return Downloads(tmp_path / "cache")


@pytest.fixture
def fetched(tmp_path):
    (tmp_path / "fetched" / "partial").mkdir(parents=True)
    (tmp_path / "fetched" / "one.deb").write_bytes(b"one")
    (tmp_path / "fetched" / "two.deb").write_bytes(b"two")
    (tmp_path / "fetched" / "partial" / "half.deb").write_bytes(b"ha")
    (tmp_path / "fetched" / "link.deb").symlink_to("/etc/passwd")
    return tmp_path / "fetched"


@pytest.fixture
def lists(tmp_path):
    def write(data, other=b""):
        (tmp_path / "lists").mkdir()
        text = INDEX.format(digest=digest(data), other=digest(other))
        (tmp_path / "lists" / "mirror_Packages").write_text(text)
        return tmp_path / "lists"

    return write


def test_whole_files_are_kept_by_their_digests_once(cache, fetched):
    assert cache.collect(fetched, ".deb") == 2
    assert cache.collect(fetched, ".deb") == 0
    assert {path.name for path in cache.directory.iterdir()} == {digest(b"one"), digest(b"two")}
    assert cache.directory.stat().st_mode & 0o777 == 0o700
    assert (cache.count(), cache.size_bytes()) == (2, 8192)
    cache.clear()
    assert cache.size_bytes() == 0
    Downloads(fetched / "nowhere").clear()


def test_what_a_killed_build_left_half_written_goes(cache, fetched):
    cache.prepare()
    (cache.directory / f".{digest(b'x')}.part").write_bytes(b"x")
    cache.prepare()
    assert list(cache.directory.iterdir()) == []


def test_the_longest_unused_goes_first(cache, fetched, monkeypatch):
    cache.collect(fetched, ".deb")
    os.utime(cache.directory / digest(b"one"), (1, 1))
    monkeypatch.setattr(downloads, "MOST_BYTES", 4096)
    cache.collect(fetched / "partial", ".none")
    assert [path.name for path in cache.directory.iterdir()] == [digest(b"two")]


def test_what_the_index_has_is_put_where_apt_looks(cache, fetched, lists, tmp_path):
    cache.collect(fetched, ".deb")
    archives = tmp_path / "archives"
    archives.mkdir()
    os.utime(cache.directory / digest(b"one"), (1, 1))
    assert fill(lists(b"one", b"absent"), cache.directory, archives) == 1
    assert {path.name: path.read_bytes() for path in archives.iterdir()} == {
        "zlib1g_1%3a1.2+dfsg~1_amd64.deb": b"one"
    }
    assert (cache.directory / digest(b"one")).stat().st_mtime > 1
    assert fill(tmp_path / "lists", cache.directory, archives) == 1


def test_a_damaged_file_is_removed_and_not_used(cache, fetched, lists, tmp_path, capsys):
    cache.collect(fetched, ".deb")
    path = cache.directory / digest(b"one")
    path.unlink()
    path.write_bytes(b"ona")
    (tmp_path / "archives").mkdir()
    assert fill(lists(b"one"), cache.directory, tmp_path / "archives") == 0
    assert list((tmp_path / "archives").iterdir()) == []
    assert not path.exists()
    assert "damaged" in capsys.readouterr().err


def test_names_are_as_apt_writes_them():
    assert archive_name("a", "1:2~b+c-1", "amd64") == "a_1%3a2~b+c-1_amd64.deb"
