"""The script that moves a home up out of root/, by the shells that run it; and the fingerprint."""

import shutil
import subprocess

import pytest

from banger.images import home
from banger.images.resources import payload_dir

SHELLS = [[path] for name in ("dash", "bash") if (path := shutil.which(name))]
SHELLS += [[path, "sh"] for path in (shutil.which("busybox"),) if path]


def flatten(shell, directory):
    script = payload_dir() / "flatten.sh"
    done = subprocess.run([*shell, script, directory], capture_output=True, text=True, check=True)  # fmt: skip
    assert done.stderr == ""
    return done.stdout


def files(directory):
    return {str(path.relative_to(directory)): path.read_text() for path in directory.rglob("*") if path.is_file()}  # fmt: skip


def make(directory, tree):
    for name, text in tree.items():
        (directory / name).parent.mkdir(parents=True, exist_ok=True)
        (directory / name).write_text(text)


@pytest.fixture(params=SHELLS, ids=lambda words: words[0].rpartition("/")[2])
def shell(request):
    return request.param


def test_a_home_in_root_is_moved_up_whatever_its_names(shell, tmp_path):
    names = [".bashrc", "a b", "-n", "*", "new\nline", "..x", ".hidden/deep/er", "root/own", "'q\"", "lost+found/x"]  # fmt: skip
    make(tmp_path, {f"root/{name}": name for name in names})
    (tmp_path / "lost+found").mkdir()
    (tmp_path / "root" / "link").symlink_to("nowhere")
    assert flatten(shell, tmp_path) == "the home in root/ was moved up\n"
    assert files(tmp_path) == {name: name for name in names}
    assert (tmp_path / "link").is_symlink()
    assert flatten(shell, tmp_path) == ""


def test_what_is_above_stays_and_what_was_below_is_beside_it(shell, tmp_path):
    make(
        tmp_path,
        {"root/.profile": "p", "root/note": "below", "note": "above", "note.from-root": "older"},
    )
    make(tmp_path, {"root/d/x": "below", "d/x": "above", "root/empty/y": "below"})
    (tmp_path / "empty").mkdir()
    (tmp_path / "root" / "broken").symlink_to("nowhere")
    (tmp_path / "broken").symlink_to("elsewhere")
    flatten(shell, tmp_path)
    assert files(tmp_path) == {
        ".profile": "p", "note": "above", "note.from-root": "older", "note.from-root2": "below",
        "d/x": "above", "d.from-root/x": "below", "empty/y": "below",
    }  # fmt: skip
    assert (tmp_path / "broken").readlink().name == "elsewhere"
    assert (tmp_path / "broken.from-root").readlink().name == "nowhere"


@pytest.mark.parametrize(
    "tree",
    [
        {"root/note": "no home"},
        {".bashrc": "a home", "root/.bashrc": "somebody's copy of another"},
        {".profile": "a home", "root/.profile": "somebody's copy of another"},
        {"root": "a file"},
        {},
    ],
)
def test_another_directory_called_root_is_left_alone(shell, tmp_path, tree):
    make(tmp_path, tree)
    assert flatten(shell, tmp_path) == ""
    assert files(tmp_path) == tree


def test_a_link_called_root_is_not_followed(shell, tmp_path):
    make(tmp_path / "other", {".bashrc": "x"})
    disk = tmp_path / "disk"
    disk.mkdir()
    (disk / "root").symlink_to("../other")
    assert flatten(shell, disk) == ""
    assert files(tmp_path / "other") == {".bashrc": "x"}


def test_a_run_that_was_cut_short_is_ended_by_the_next(shell, tmp_path):
    """After the first rename, and with some of it moved: the shell's files are above already."""
    make(tmp_path, {".banger-nested-root/note": "below", ".bashrc": "moved", "note": "above"})
    flatten(shell, tmp_path)
    assert files(tmp_path) == {".bashrc": "moved", "note": "above", "note.from-root": "below"}
    assert not (tmp_path / ".banger-nested-root").exists()


def test_the_fingerprint_changes_with_what_seeds_are_made_ready_with(monkeypatch):
    now = home.fingerprint()
    home.fingerprint.cache_clear()
    assert home.fingerprint() == now
    for name, value in (("LAYOUT", 99), ("_DIRECTORIES", {}), ("JOURNAL_MIB", 99)):
        with monkeypatch.context() as patch:
            patch.setattr(home, name, value)
            home.fingerprint.cache_clear()
            assert home.fingerprint() != now
    home.fingerprint.cache_clear()
