"""Versions come, are switched to, and go. Every function but `current_manifest` needs the root's lock.

A switch is one rename of ``current``. What is to be ``current`` is first written as ``.current.new``, then ``previous`` is set to the
version that goes, then the rename: killed anywhere, `recover` knows which of both it was. A version directory is complete
before it gets its name, and is never changed afterwards. Trace points: ``runtime.switch.announced``, ``.kept``.
"""

from __future__ import annotations

import errno
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from banger.bundle.manifest import FILE_NAME, Manifest, to_toml
from banger.bundle.places import Root
from banger.bundle.report import Reporter
from banger.host import faults, fs
from banger.host.locks import FileLock
from banger.model.clock import Deadline
from banger.model.errors import RefusedError

_STAGING: Final = ".new-"
_AGAIN_S: Final = 0.1


@contextmanager
def writing(root: Root, reporter: Reporter, wait_s: float) -> Iterator[None]:
    """Be the one writer of ``root``, which is made if it is missing; what a killed one left is put right first, and what this one leaves
    that fails, at once.

    Waits up to ``wait_s`` for another one; then RefusedError.
    """
    import time  # noqa: PLC0415  readers of this module do not wait

    make_public_dir(root.path)
    lock, deadline, told = FileLock(root.lock), Deadline.after(wait_s), False
    while not lock.acquire():
        if deadline.passed:
            raise RefusedError(
                f"another banger changes {root.path}",
                detail=f"pid {lock.holder()} still does after {wait_s:g} s",
                hint="wait for it, then do this again",
            )
        if not told:
            reporter.note(f"another banger (pid {lock.holder()}) changes {root.path}; waiting")
            told = True
        time.sleep(min(_AGAIN_S, deadline.remaining_s))  # flock offers no wait with a deadline
    try:
        recover(root)
        yield
    except BaseException:
        with suppress(OSError):  # the first error is told, and the next writer tries again
            recover(root)
        raise
    finally:
        lock.release()


def make_public_dir(path: Path) -> None:
    """Make ``path`` and its parents directories that all may enter and only their owner may change, whatever the umask says;
    those that are there are left as they are.
    """
    if path.is_dir():
        return
    make_public_dir(path.parent)
    with suppress(FileExistsError):  # somebody else was faster
        path.mkdir(mode=0o755)
        path.chmod(0o755)


def recover(root: Root) -> None:
    """Finish or forget the switch that a writer was in, and remove what it was making, or made and did not come to switch to."""
    previous, coming = root.target(root.previous), root.target(root.coming)
    cut = previous is not None and previous == root.target(root.current)
    if cut and coming is not None and coming.is_dir():  # only the rename was missing
        root.coming.replace(root.current)
    for link in (root.coming, _new(root.previous)):
        link.unlink(missing_ok=True)
    prune(root)


@contextmanager
def staging(root: Root) -> Iterator[Path]:
    """An empty directory beside the versions; whatever of it was not given a name by `finish` is removed at the end."""
    make_public_dir(root.versions)
    path = root.versions / f"{_STAGING}{secrets.token_hex(4)}"
    path.mkdir(mode=0o755)
    try:
        yield path
    finally:
        fs.remove_tree(path)


def finish(root: Root, made: Path, manifest: Manifest) -> Path:
    """Give the complete directory ``made`` its name; the new version's directory."""
    fs.write_atomic(made / FILE_NAME, to_toml(manifest).encode(), mode=0o644)
    for path in (made, *(below for below in made.rglob("*") if below.is_dir())):
        path.chmod(0o755)
        _sync(path)
    name = f"{manifest.version}-{manifest.identity()[:12]}-{secrets.token_hex(2)}"
    version = root.versions / name
    made.rename(version)
    _sync(root.versions)
    return version


def switch(root: Root, version: Path, *, keep_old: bool) -> None:
    """Make ``version`` current. ``keep_old``: the one that goes becomes the previous one."""
    old = root.target(root.current)
    _link(root.coming, version)
    faults.blocking_point("runtime.switch.announced")
    if keep_old and old is not None:
        _link(_new(root.previous), old)
        _new(root.previous).replace(root.previous)
    faults.blocking_point("runtime.switch.kept")
    root.coming.replace(root.current)
    _sync(root.path)


def prune(root: Root) -> None:
    """Remove all versions but the current and the previous one."""
    kept = {root.target(root.current), root.target(root.previous)}
    for path in root.versions.iterdir() if root.versions.is_dir() else ():
        if path not in kept:
            fs.remove_tree(path)


def forget_download(root: Root, part: Path) -> None:
    """Remove what is there of an archive's download; idempotent. Those of others stay, for who goes on with them."""
    for path in (part, part.with_name(f"{part.name}.etag")):
        path.unlink(missing_ok=True)
    fs.sweep_temporaries(root.downloads, 0.0)
    with suppress(OSError):  # it is not empty, or not there
        root.downloads.rmdir()


def _new(link: Path) -> Path:
    return link.with_name(f".{link.name}.new")


def _link(link: Path, version: Path) -> None:
    link.unlink(missing_ok=True)
    link.symlink_to(Path(version.parent.name, version.name))


def _sync(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # not every file system can
            raise
    finally:
        os.close(descriptor)
