"""A bundle gets to its place whole or not at all: from a server, an archive, a directory; interrupted, at the same time, killed."""

import json
import os
import signal
import subprocess
import sys
import threading

import msgspec
import pytest

from banger.bundle import elf
from banger.bundle import fetch as fetching
from banger.bundle.check import look
from banger.bundle.fetch import Wish, fetch, install, rollback
from banger.bundle.places import Root, installed_root
from banger.bundle.report import Silent
from banger.host import fs
from banger.host.locks import FileLock
from banger.host.tars import ArchiveError
from banger.model.errors import HostLacksError, NotFoundError, RefusedError
from tests.framework.bundles import Bundle, a_root, everything_below, program, sha256, tar
from tests.framework.installation import wait_until
from tests.framework.killed import killed_at

QUIET = Silent()


class Listener(Silent):
    def __init__(self):
        self.stages, self.notes = [], []

    def done(self, stage, detail):
        self.stages.append(stage)

    def note(self, sentence):
        self.notes.append(sentence)


def in_use(root):
    found = look(root)
    assert found.state == "ok", found.whys
    return found.manifest.version


def tidy(root, versions):
    """Nothing lies in the root but this many versions and the links to them."""
    names = {path.name for path in root.path.iterdir()}
    assert names <= {".lock", "versions", "current", "previous"}
    assert len(list(root.versions.iterdir())) == versions
    return True


def test_it_comes_over_http_is_verified_and_switched_to(root, new, server):
    listener = Listener()
    assert fetch(root, Wish(new.manifest), listener) is True
    assert in_use(root) == "1.1.0"
    assert tidy(root, 1)
    assert listener.stages == ["download", "unpack", "place"]
    assert (root.current / "firecracker").read_bytes() == new.contents["firecracker"]
    assert os.access(root.current / "jailer", os.X_OK)


def test_what_is_there_and_whole_is_not_fetched_again_unless_forced(root, new, server):
    fetch(root, Wish(new.manifest), QUIET)
    assert fetch(root, Wish(new.manifest), QUIET) is False
    assert len(server.asked) == 1
    assert fetch(root, Wish(new.manifest, force=True), QUIET) is True
    assert len(server.asked) == 2
    assert tidy(root, 1)
    assert look(root, root.previous).state == "missing"


def test_a_damaged_bundle_is_mended_by_fetching_it_again(root, old, new, server):
    old.place(root)
    fetch(root, Wish(new.manifest), QUIET)
    (root.current / "jailer").write_bytes(b"tampered")
    assert look(root).state == "damaged"
    assert fetch(root, Wish(new.manifest), QUIET) is True
    assert in_use(root) == "1.1.0"
    assert look(root, root.previous).manifest.version == "1.0.0"  # not the damaged one
    assert tidy(root, 2)


@pytest.mark.parametrize("have", ["file", "tree", "current"])
def test_it_comes_from_a_file_a_directory_or_another_place(root, tmp_path, new, have):
    source = {"file": new.file, "tree": new.tree}.get(have)
    if source is None:
        other = a_root(tmp_path / "other")
        new.place(other)
        source = other.current
    assert fetch(root, Wish(new.manifest, source), QUIET) is True
    assert in_use(root) == "1.1.0"
    assert tidy(root, 1)


def test_the_old_version_is_kept_and_rolled_back_to_and_forth(root, old, new, tmp_path):
    for bundle in (old, new):
        bundle.place(root)
    assert rollback(root, QUIET, 5).version == "1.0.0"
    assert in_use(root) == "1.0.0"
    assert rollback(root, QUIET, 5).version == "1.1.0"
    assert in_use(root) == "1.1.0"
    Bundle("1.2.0", tmp_path).place(root)
    assert tidy(root, 2)  # the oldest is gone
    assert rollback(root, QUIET, 5).version == "1.1.0"


def test_there_is_nothing_to_roll_back_to_or_it_is_damaged(root, old, new):
    with pytest.raises(RefusedError, match="no version before"):
        rollback(root, QUIET, 5)
    assert not root.path.exists()
    old.place(root)
    with pytest.raises(RefusedError, match="no version before"):
        rollback(root, QUIET, 5)
    new.place(root)
    (root.previous / "firecracker").write_bytes(b"x")
    with pytest.raises(HostLacksError, match="is damaged") as caught:
        rollback(root, QUIET, 5)
    assert "firecracker" in caught.value.detail
    assert in_use(root) == "1.1.0"
    fs.remove_tree(root.target(root.previous))
    with pytest.raises(HostLacksError, match="is damaged"):
        rollback(root, QUIET, 5)


@pytest.mark.parametrize("where", ["server", "file"])
def test_a_wrong_digest_places_nothing(root, old, new, server, where):
    old.place(root)
    before = everything_below(root.path)
    spoiled = new.archive[:-9] + bytes([new.archive[-9] ^ 1]) + new.archive[-8:]
    server.data = spoiled
    new.file.write_bytes(spoiled)
    with pytest.raises(HostLacksError) as caught:
        fetch(root, Wish(new.manifest, new.file if where == "file" else None), QUIET)
    assert "SHA-256" in caught.value.detail
    assert in_use(root) == "1.0.0"
    fs.remove_tree(root.downloads)
    assert everything_below(root.path) == before


def test_an_archive_of_the_right_digest_with_wrong_files_places_nothing_and_is_not_kept(
    root, old, new, server
):
    """Whoever pins an archive vouches for it; what is in it is verified all the same."""
    old.place(root)
    before = everything_below(root.path)
    other = program("firecracker 6.6.6")
    archive = tar([("firecracker", other), ("jailer", new.contents["jailer"])])
    manifest = msgspec.structs.replace(
        new.manifest, sha256=sha256(archive), size_bytes=len(archive)
    )
    server.data = archive
    with pytest.raises(ArchiveError, match="firecracker from the archive is not the file"):
        fetch(root, Wish(manifest), QUIET)
    assert everything_below(root.path) == before


def test_a_download_that_was_cut_is_resumed_by_the_next_fetch(root, new, server):
    """The first fetch gets no further than its first piece; the second one asks only for the rest."""
    half = len(new.archive) // 2
    server.cut, server.ranges = half, True
    server.lie = {"Content-Range": "bytes 0-0/1"}
    with pytest.raises(HostLacksError, match="could not be downloaded"):
        fetch(root, Wish(new.manifest), QUIET)
    assert look(root).state == "missing"
    server.cut, server.served = None, 0
    server.lie.clear()
    fetch(root, Wish(new.manifest), QUIET)
    assert server.served == len(new.archive) - half
    assert in_use(root) == "1.1.0"
    assert tidy(root, 1)


def test_a_manifest_that_pins_nothing_or_names_no_source_is_told(root, new, tmp_path, monkeypatch):
    bare = msgspec.structs.replace(
        new.manifest, sha256="", size_bytes=0, version="",
        files=tuple(msgspec.structs.replace(f, sha256="", size_bytes=0) for f in new.manifest.files),
    )  # fmt: skip
    with pytest.raises(HostLacksError, match="pinned yet") as caught:
        fetch(root, Wish(bare, new.file), QUIET)
    assert "package" in caught.value.hint
    with pytest.raises(HostLacksError, match="names no URL") as caught:
        fetch(root, Wish(new.manifest), QUIET)
    assert "--from" in caught.value.hint
    with pytest.raises(NotFoundError, match="neither a file"):
        fetch(root, Wish(new.manifest, tmp_path / "nothing"), QUIET)
    monkeypatch.setattr(elf, "host_architecture", lambda: "riscv64")
    with pytest.raises(HostLacksError, match="this machine is riscv64"):
        fetch(root, Wish(new.manifest, new.file), QUIET)
    assert not root.path.exists()


def test_modes_are_right_whatever_the_umask_says(root, new):
    for mask in (0o077, 0o000, 0o027):
        before = os.umask(mask)
        try:
            fetch(root, Wish(new.manifest, new.file, force=True), QUIET)
        finally:
            os.umask(before)
        version = root.target(root.current)
        for path in (root.path, root.versions, version):
            assert path.stat().st_mode & 0o7777 == 0o755
        assert (version / "manifest.toml").stat().st_mode & 0o7777 == 0o644
        assert in_use(root) == "1.1.0"


def test_a_place_that_may_not_be_written_is_told_with_two_ways_out(root, new, monkeypatch):
    root.path.parent.mkdir(exist_ok=True)
    root.path.write_text("in the way")
    with pytest.raises(HostLacksError, match="cannot be written"):
        new.place(root)
    root.path.unlink()

    def forbidden(*_args, **_kwargs):
        raise PermissionError(13, "Permission denied", str(root.versions))

    monkeypatch.setattr(fetching.place, "staging", forbidden)
    with pytest.raises(HostLacksError) as caught:
        new.place(root)
    assert caught.value.hint == (
        "sudo banger runtime fetch, or set BANGER_BUNDLE_DIR to a directory of your own"
    )
    assert f"{root.versions}: Permission denied" in caught.value.detail


def test_too_little_space_is_refused_with_numbers_before_anything_is_written(
    root, new, server, monkeypatch
):
    monkeypatch.setattr(fetching.fs, "free_bytes", lambda _: 1 << 20)
    with pytest.raises(HostLacksError, match="no space") as caught:
        fetch(root, Wish(new.manifest), QUIET)
    assert "needs 4M, 1M are free" in caught.value.detail
    assert server.asked == []


def test_installing_copies_what_is_in_use_to_a_prefix(root, old, new, tmp_path):
    old.place(root)
    target = installed_root(tmp_path / "prefix")
    assert target.path == tmp_path / "prefix" / "lib" / "banger"
    assert install(look(root), target, QUIET) is True
    assert install(look(root), target, QUIET) is False
    new.place(root)
    install(look(root), target, QUIET)
    assert in_use(target) == "1.1.0"
    rollback(target, QUIET, 5)
    assert in_use(target) == "1.0.0"


def test_another_writer_is_waited_for_and_named_if_it_does_not_end(root, new):
    root.path.mkdir(parents=True)
    lock = FileLock(root.lock)
    assert lock.acquire()
    listener = Listener()
    with pytest.raises(RefusedError, match="another banger") as caught:
        fetch(root, Wish(new.manifest, new.file, timeout_s=0.3), listener)
    assert str(os.getpid()) in caught.value.detail
    assert len(listener.notes) == 1
    timer = threading.Timer(0.3, lock.release)
    timer.start()
    assert fetch(root, Wish(new.manifest, new.file, timeout_s=10), QUIET)
    timer.join()
    assert in_use(root) == "1.1.0"


def banger(root, *argv):
    return subprocess.Popen(
        [sys.executable, "-m", "banger.cli.main", "runtime", *map(str, argv)],
        env={**os.environ, "BANGER_BUNDLE_DIR": str(root.path), "BANGER_CONFIG": "/nonexistent"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_two_fetches_at_once_download_once_and_both_end_well(root, new, server):
    goes_on = threading.Event()
    server.hold = (50, goes_on)
    both = [banger(root, "fetch", "--manifest", new.manifest_file, "--format", "json") for _ in range(2)]  # fmt: skip
    wait_until(lambda: server.asked, 20)
    goes_on.set()
    for process in both:
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert json.loads(out)["state"] == "ok"
    assert server.served == len(new.archive)
    assert tidy(root, 1)


def test_a_fetch_that_is_killed_lets_a_waiting_one_go_on_where_it_was(root, new, server):
    goes_on = threading.Event()
    server.hold = (50, goes_on)
    first = banger(root, "fetch", "--manifest", new.manifest_file)
    part = root.downloads / f"{new.manifest.sha256}.part"
    wait_until(lambda: fs.length_bytes(part) == 50, 20)
    second = banger(root, "fetch", "--manifest", new.manifest_file)
    assert second.stderr.readline().startswith("another banger")
    server.hold = None
    first.send_signal(signal.SIGKILL)
    _, err = second.communicate(timeout=60)
    goes_on.set()
    first.communicate()
    assert second.returncode == 0, err
    assert server.asked[1][1] == "bytes=50-"
    assert in_use(root) == "1.1.0"


def each_kill(tmp_path, prepare, work):
    """Yields a root after ``prepare`` and a ``work`` that was killed at its first, second, … step, until it came to its end."""
    number = 1
    while True:
        root = a_root(tmp_path / f"killed{number}")
        prepare(root)
        if not killed_at(number, root.path, lambda root=root: work(root)):
            break
        yield root
        number += 1
    assert number > 10


def test_kill_9_at_any_step_of_a_first_fetch_leaves_nothing_that_is_used(tmp_path, new):
    complete = []
    for root in each_kill(tmp_path, lambda _: None, new.place):
        state = look(root)
        assert state.state in {"missing", "ok"}
        complete.append(state.state == "ok")
        new.place(root)
        assert in_use(root) == "1.1.0"
        assert tidy(root, 1)
        assert look(root, root.previous).state == "missing"
    assert complete == sorted(complete)  # once it is there it stays there


def test_kill_9_at_any_step_of_an_update_leaves_the_old_or_the_new_version_in_use(
    tmp_path, old, new
):
    used = []
    for root in each_kill(tmp_path, old.place, new.place):
        used.append(in_use(root))
        new.place(root)
        assert in_use(root) == "1.1.0"
        assert look(root, root.previous).manifest.version == "1.0.0"
        assert tidy(root, 2)
        rollback(root, QUIET, 5)
        assert in_use(root) == "1.0.0"
    assert used == sorted(used)
    assert set(used) == {"1.0.0", "1.1.0"}


def test_kill_9_at_any_step_of_a_rollback_loses_neither_version(tmp_path, old, new):
    def prepare(root):
        old.place(root)
        new.place(root)

    used = []
    for root in each_kill(tmp_path, prepare, lambda root: rollback(root, QUIET, 5)):
        used.append(in_use(root))
        both = {rollback(root, QUIET, 5).version, rollback(root, QUIET, 5).version}
        assert both == {"1.0.0", "1.1.0"}
        new.place(root)
        assert tidy(root, 2)
    assert set(used) == {"1.0.0", "1.1.0"}


def test_a_root_is_known_by_its_links_only(tmp_path):
    root = Root(tmp_path)
    assert root.target(root.current) is None
    root.current.symlink_to("versions/1.0.0-x")
    assert root.target(root.current) == tmp_path / "versions" / "1.0.0-x"
    for elsewhere in ("/etc", "../x", "versions/../x", "other/1.0.0", "versions/a/b", "versions"):
        root.current.unlink()
        root.current.symlink_to(elsewhere)
        assert root.target(root.current) is None
