"""The fault matrix of a fetch: at every trace point that it passes, with every fault, from several beginnings. The points are found out by
fetching once.

After each: the bundle in use is whole, an old or a new one; what failed or was interrupted leaves nothing but a download to go on with;
the next fetch succeeds, and after it nothing is left at all, whatever came before.
"""

import contextlib
import errno
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from banger.bundle.check import look
from banger.bundle.fetch import Wish, fetch
from banger.bundle.report import Silent
from banger.host import faults
from banger.model.errors import BangerError, HostLacksError
from tests.framework.bundles import Bundle, Server, a_root
from tests.framework.installation import wait_until

QUIET = Silent()
OLD, NOW, NEW = "0.9.0", "1.0.0", "1.1.0"
BEGINNINGS = {"first": (), "update": (OLD, NOW), "again": (NOW, NEW), "damaged": (OLD, NOW)}
"""What was placed before, in order; the last one is in use. ``again``: what is fetched is that already. ``damaged``: it is not whole."""
FAULTS = ("error", "full", "cancel", "kill")
"""At the point: an error of ours, a disk without space, Ctrl-C, kill -9."""
SIZE = 224
"""How many cells the matrix has; SPECIFICATION.md says it too."""


class Place:
    """A root in one of the beginnings, and a server of what is fetched."""

    def __init__(self, directory, beginning, server, new):
        self.root, self.server, self.new, self.beginning = a_root(directory / "root"), server, new, beginning  # fmt: skip
        self.force = beginning == "again"
        for version in BEGINNINGS[beginning]:
            (new if version == NEW else Bundle(version, directory)).place(self.root)
        if beginning == "damaged":
            (self.root.current / "jailer").write_bytes(b"tampered")

    def fetch(self, *, force=False):
        return fetch(self.root, Wish(self.new.manifest, force=force), QUIET)

    def in_use(self, link=None):
        """The version in use, or that ``link`` leads to, which is whole; None if there is none, ``damaged`` as it was."""
        found = look(self.root, link or self.root.current)
        if found.state == "missing":
            return None
        if self.beginning == "damaged" and link is None and found.state == "damaged":
            return "damaged"
        assert found.state == "ok", found.whys
        return found.manifest.version

    def left(self):
        """What is there beside the versions in use and the lock."""
        root = self.root
        kept = {root.lock, root.versions, root.current, root.previous}
        versions = {root.target(root.current), root.target(root.previous)}
        found = [path for path in root.path.iterdir() if path not in kept]
        if root.versions.is_dir():
            found += [path for path in root.versions.iterdir() if path not in versions]
        return sorted(found)


def a_server(directory):
    new = Bundle(NEW, directory)
    server = Server(new.archive)
    new.at(server.url)
    return server, new


def passed(beginning):
    """The trace points of a fetch, in order."""
    points = []
    with (
        tempfile.TemporaryDirectory() as directory,
        contextlib.ExitStack() as stack,
        pytest.MonkeyPatch.context() as patch,
    ):
        server, new = a_server(Path(directory))
        stack.enter_context(server)
        place = Place(Path(directory), beginning, server, new)
        patch.setattr(faults, "blocking_point", points.append)
        assert place.fetch(force=place.force) is True
        assert place.left() == []
    return points


POINTS = {beginning: passed(beginning) for beginning in BEGINNINGS}
MATRIX = [
    pytest.param(beginning, point, fault, id=f"{beginning}-{point}-{fault}")
    for beginning in BEGINNINGS
    for point in POINTS[beginning]
    for fault in FAULTS
]
STEPS = ("download", "unpack", "seal", "switch", "prune", "clear")


def test_the_matrix_has_its_size_and_leaves_no_step_out():
    assert len(MATRIX) == SIZE
    for points in POINTS.values():
        assert len(set(points)) == len(points)
        ends = {f"runtime.fetch.{step}.{end}" for step in STEPS for end in ("before", "after")}
        assert set(points) == ends | {"runtime.switch.announced", "runtime.switch.kept"}


@pytest.fixture
def place_of(tmp_path):
    """A place in a beginning, with its server."""
    server, new = a_server(tmp_path)
    with server:
        yield lambda beginning: Place(tmp_path, beginning, server, new)


def strike(fault, point):
    """What happens at the point, and what the fetch says of it."""

    def happen(name):
        if name != point:
            return
        if fault == "error":
            raise BangerError("injected")
        if fault == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if fault == "cancel":
            raise KeyboardInterrupt
        os.kill(os.getpid(), signal.SIGKILL)

    kinds = {"error": BangerError, "full": HostLacksError, "cancel": KeyboardInterrupt}
    return happen, kinds.get(fault)


def killed(work):
    """Do ``work`` in a child, which is killed in it."""
    child = os.fork()
    if child == 0:
        try:
            work()
        finally:
            os._exit(1)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL


def check(place, before, point, *, killed):
    """The bundle in use is whole, and nothing is left that the fault explains not."""
    points = POINTS[place.beginning]
    now = place.in_use()
    assert now in {before, NEW}
    if points.index(point) < points.index("runtime.switch.announced"):
        assert now == before
    if points.index(point) > points.index("runtime.switch.kept"):
        assert now == NEW
    assert place.in_use(place.root.previous) in {None, OLD, NOW}
    if not killed:
        assert place.left() in ([], [place.root.downloads])
        if place.root.downloads.exists():
            names = {path.name for path in place.root.downloads.iterdir()}
            assert names <= {f"{place.new.manifest.sha256}.part"}


def check_next(place):
    """The next fetch succeeds and leaves nothing."""
    place.fetch()
    assert place.in_use() == NEW
    assert place.left() == []
    expected = {"first": {None}, "update": {NOW}, "again": {NOW}, "damaged": {OLD}}
    assert place.in_use(place.root.previous) in expected[place.beginning]
    assert place.fetch() is False


@pytest.mark.parametrize(("beginning", "point", "fault"), MATRIX)
def test_whatever_happens_a_whole_bundle_is_in_use_and_nothing_is_left(
    place_of, monkeypatch, beginning, point, fault
):
    place = place_of(beginning)
    before = place.in_use()
    happen, kind = strike(fault, point)
    with monkeypatch.context() as patch:
        patch.setattr(faults, "blocking_point", happen)
        if kind is None:
            killed(lambda: place.fetch(force=place.force))
        else:
            with pytest.raises(kind):
                place.fetch(force=place.force)
    check(place, before, point, killed=kind is None)
    if fault == "full" and point in POINTS[beginning][: POINTS[beginning].index("runtime.fetch.prune.before")]:  # fmt: skip
        assert not place.root.downloads.exists()
    check_next(place)


def command(place, fault):
    """``banger runtime fetch`` with this fault in it."""
    return subprocess.Popen(
        [sys.executable, "-m", "banger.cli.main", "runtime", "fetch", "--manifest", place.new.manifest_file],
        env={
            **{k: v for k, v in os.environ.items() if not k.startswith("BANGER_")},
            "BANGER_BUNDLE_DIR": str(place.root.path), "BANGER_CONFIG": "/nonexistent", "BANGER_FAULTS": fault,
        },
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("point", POINTS["update"])
def test_a_command_that_is_killed_at_a_point_is_followed_by_one_that_does_the_rest(place_of, point):
    place = place_of("update")
    process = command(place, f"{point}=kill")
    _, err = process.communicate(timeout=60)
    assert process.returncode == -signal.SIGKILL, err
    check(place, NOW, point, killed=True)
    check_next(place)


@pytest.mark.parametrize("point", ["runtime.fetch.unpack.after", "runtime.switch.kept", "runtime.fetch.clear.before"])  # fmt: skip
def test_ctrl_c_at_a_point_leaves_a_whole_bundle_and_nothing_else(place_of, point):
    place = place_of("update")
    root = place.root
    reached = {
        "runtime.fetch.unpack.after": lambda: len(list(root.versions.glob(".new-*/*"))) == 2,
        "runtime.switch.kept": lambda: root.coming.is_symlink() and root.target(root.previous) == root.target(root.current),
        "runtime.fetch.clear.before": lambda: len(list(root.versions.iterdir())) == 2 and place.in_use() == NEW,
    }  # fmt: skip
    process = command(place, f"{point}=hang")
    wait_until(reached[point], 30)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err.splitlines()[-1]) == (130, "interrupted")
    check(place, NOW, point, killed=False)
    check_next(place)


def test_an_error_at_a_point_is_told_with_its_next_step(place_of):
    place = place_of("update")
    process = command(place, "runtime.fetch.seal.before=error")
    _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "error: fault injected at runtime.fetch.seal.before" in err
    check(place, NOW, "runtime.fetch.seal.before", killed=False)
    check_next(place)


# What came before is of another version


def test_a_fetch_of_what_is_there_takes_the_rests_of_another_and_keeps_what_can_be_gone_on_with(
    place_of, monkeypatch, tmp_path
):
    """The one that was killed had made its version; its download is whole."""
    place = place_of("update")
    now = Bundle(NOW, tmp_path / "again")
    happen, _ = strike("kill", "runtime.switch.announced")
    with monkeypatch.context() as patch:
        patch.setattr(faults, "blocking_point", happen)
        killed(place.fetch)
    assert len(list(place.root.versions.iterdir())) == 3
    assert now.place(place.root) is False
    assert place.in_use() == NOW
    assert place.left() == [place.root.downloads]
    served = place.server.served
    assert place.fetch() is True
    assert place.server.served == served
    check_next(place)
