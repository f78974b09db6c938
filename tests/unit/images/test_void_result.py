"""A root is compared with what its packages say of themselves, and these with the lock."""

import hashlib
import json
import plistlib
import sys

import pytest

from banger.images.void import result
from tests.framework.xbps_repository import link


@pytest.fixture
def look(tmp_path, monkeypatch, capsys):
    """Makes a root of one package, changes it, and gives what the program says."""

    def run(
        change=lambda root: None, *, locked=("a-1_1",), state="installed", digest=None, files=True
    ):
        root = tmp_path / "root"
        (root / "var/db/xbps").mkdir(parents=True)
        (root / "usr").mkdir()
        (root / "usr/a").write_bytes(b"a")
        (root / "usr/m").write_bytes(b"changed, as it may be")
        (root / "usr/l").symlink_to("a")
        lists = plistlib.dumps(
            {
                "files": [{"file": "/usr/a", "sha256": hashlib.sha256(b"a").hexdigest()}, {"file": "/usr/m", "sha256": "0" * 64, "mutable": True}],
                "conf_files": [{"file": "/usr/m", "sha256": "0" * 64}],
                "links": [{"file": "/usr/l", "target": link("a")[1]}],
            }
        )  # fmt: skip
        props = {"pkgver": "a-1_1", "state": state}
        if files:
            (root / "var/db/xbps/.a-files.plist").write_bytes(lists)
            props["metafile-sha256"] = digest or hashlib.sha256(lists).hexdigest()
        database = {"a": props, "_XBPS_ALTERNATIVES_": {"sh": ["dash"]}}
        (root / result.DATABASE).write_bytes(plistlib.dumps(database))
        change(root)
        lock = tmp_path / "lock"
        lock.write_text(json.dumps({"packages": [{"pkgver": name} for name in locked]}))
        monkeypatch.setattr(sys, "argv", ["result", str(root), str(lock)])
        with pytest.raises(SystemExit) as ended:
            result.main()
        said = capsys.readouterr().err
        assert bool(said) == bool(ended.value.code)
        return said

    return run


def test_a_root_that_is_as_its_packages_say_is_right(look):
    assert look() == ""


def test_a_package_without_files_has_no_list(look):
    assert look(files=False) == ""


def replaced_by_a_link(root):
    (root / "usr/a").unlink()
    (root / "usr/a").symlink_to("/usr/a")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda root: (root / "usr/a").write_bytes(b"b"), "/usr/a is not as in its package"),
        (lambda root: (root / "usr/a").unlink(), "/usr/a No such file"),
        (replaced_by_a_link, "/usr/a Too many levels"),
        (lambda root: (root / "usr/l").unlink(), "/usr/l is not there"),
        (lambda root: (root / "usr/m").unlink(), "/usr/m is not there"),
        (lambda root: (root / "var/db/xbps/.a-files.plist").unlink(), "has no list"),
        (lambda root: (root / "var/db/xbps/.a-files.plist").write_bytes(plistlib.dumps({})), "is not the one that was installed"),
        (lambda root: (root / result.DATABASE).write_bytes(b"half"), "pkgdb"),
        (lambda root: (root / result.DATABASE).unlink(), "pkgdb"),
    ],
)  # fmt: skip
def test_every_difference_is_told(look, change, what):
    assert what in look(change)


def test_packages_that_are_not_locked_or_not_there_are_told(look):
    said = look(locked=("a-1_2", "b-1_1"))
    assert "a-1_1 is installed and not locked" in said
    assert "b-1_1 is locked and not installed" in said


@pytest.mark.parametrize("state", ["unpacked", "half-removed", None])
def test_a_package_that_was_not_configured_is_told(look, state):
    assert "is not configured" in look(state=state or "")
