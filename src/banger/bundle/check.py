"""Is what lies there what its manifest says? File by file: there, whole, unchanged, startable, and nobody else's to change."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from banger.bundle import elf, reading
from banger.bundle.manifest import FileTable, Manifest
from banger.bundle.places import Root, manifest_of
from banger.model import clock
from banger.model.errors import BangerError


@dataclass(frozen=True, slots=True)
class FileState:
    """One file of a bundle. ``state`` is ok, missing, changed (size or digest), mode, architecture, owner or unreadable; ``why``
    says it in words, empty for ok.
    """

    path: str
    state: str = "ok"
    why: str = ""


@dataclass(frozen=True, slots=True)
class BundleState:
    """A version of a bundle. ``state`` is ok, missing (nothing was placed) or damaged; ``problem`` is one of no single file, such as
    a manifest that cannot be read; ``directories`` are those that others must not write in.
    """

    state: str
    version_dir: Path | None = None
    manifest: Manifest | None = None
    files: tuple[FileState, ...] = ()
    directories: tuple[FileState, ...] = ()
    problem: str = ""

    @property
    def whys(self) -> list[str]:
        """All that is wrong, a line each."""
        states = (*self.directories, *self.files)
        return [*filter(None, [self.problem]), *(f"{s.path}: {s.why}" for s in states if s.why)]

    def only(self, state: str) -> bool:
        """Whether nothing but this is wrong."""
        return not self.problem and {s.state for s in (*self.directories, *self.files)} == {
            "ok",
            state,
        }


def look(root: Root, link: Path | None = None, *, programs_only: bool = False) -> BundleState:
    """The version that ``link`` (default: `Root.current`) leads to, with every file verified, or those that banger starts."""
    link = link or root.current
    try:
        return _look(root, link, programs_only=programs_only)
    except OSError as error:
        return BundleState("damaged", problem=f"{error.filename or link}: {error.strerror}")


def _look(root: Root, link: Path, *, programs_only: bool) -> BundleState:
    if not link.is_symlink():
        return BundleState("missing")
    version = root.target(link)
    if version is None or not version.is_dir():
        return BundleState("damaged", problem=f"{link} leads to no version of a bundle")
    directories = tuple(
        FileState(str(path), "owner" if (why := _others_may_write(path.stat())) else "ok", why)
        for path in (root.path, root.versions, version)
    )
    ignored: list[str] = []  # a placed manifest has today's names
    try:
        manifest = reading.load(manifest_of(version), ignored.append)
    except BangerError as error:
        what = f"{error.what}: {error.detail}" if error.detail else error.what
        return BundleState("damaged", version, directories=directories, problem=what)
    files = check_files(version, manifest, programs_only=programs_only)
    sound = all(found.state == "ok" for found in (*directories, *files))
    return BundleState("ok" if sound else "damaged", version, manifest, files, directories)


def check_files(
    version: Path, manifest: Manifest, *, programs_only: bool = False
) -> tuple[FileState, ...]:
    """The manifest's files below the directory ``version``, in its order."""
    return tuple(
        check_file(version, file, manifest)
        for file in manifest.files
        if not programs_only or file.path in manifest.programs
    )


def check_file(version: Path, file: FileTable, manifest: Manifest) -> FileState:
    """One file below the directory ``version``."""
    path = version / file.path

    def bad(state: str, why: str) -> FileState:
        return FileState(file.path, state, why)

    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return bad("missing", "is missing")
    except OSError as error:
        if error.errno == errno.ELOOP:
            return bad("changed", "is a link")
        return bad("unreadable", f"cannot be read: {error.strerror}")
    try:
        if path.resolve() != version.resolve() / file.path:
            return bad("changed", "is reached through a link")
        return _check_open(descriptor, file, is_program=file.path in manifest.programs)
    finally:
        os.close(descriptor)


def _check_open(descriptor: int, file: FileTable, *, is_program: bool) -> FileState:
    def bad(state: str, why: str) -> FileState:
        return FileState(file.path, state, why)

    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        return bad("changed", "is no file")
    if status.st_size != file.size_bytes:
        return bad("changed", f"has {status.st_size} bytes, not {file.size_bytes}")
    digest = digest_of(descriptor)
    if digest != file.sha256:
        return bad("changed", f"its SHA-256 is {digest}, not {file.sha256}")
    if why := _others_may_write(status):
        return bad("owner", why)
    if stat.S_IMODE(status.st_mode) != file.mode_bits:
        return bad("mode", f"has mode {stat.S_IMODE(status.st_mode):04o}, not {file.mode}")
    head = os.pread(descriptor, elf.HEADER_BYTES, 0)
    if is_program and (why := elf.why_not_runnable(head, elf.host_architecture())):
        return bad("architecture", why)
    return FileState(file.path)


def _others_may_write(status: os.stat_result) -> str:
    """Why somebody but this user and root could change what ``status`` is of; empty if nobody can."""
    if status.st_uid not in {0, os.geteuid()}:
        return f"belongs to uid {status.st_uid}, who could change it"
    if status.st_mode & 0o022:
        return f"has mode {stat.S_IMODE(status.st_mode):04o}: others could change it"
    return ""


_Identity = tuple[int, int, int, int, int]
_known: dict[_Identity, str] = {}
_MOST_KNOWN = 1024
_SETTLED_S = 1.0


def digest_of(descriptor: int) -> str:
    """SHA-256 in hex of an open file, computed once for as long as neither inode nor content change.

    A file that was changed less than a second ago is not remembered: its next change could carry the same time.
    """
    status = os.fstat(descriptor)
    identity = (
        status.st_dev,
        status.st_ino,
        status.st_size,
        status.st_mtime_ns,
        status.st_ctime_ns,
    )
    if identity in _known:
        return _known[identity]
    with os.fdopen(os.dup(descriptor), "rb") as content:
        content.seek(0)
        digest = hashlib.file_digest(content, "sha256").hexdigest()
    age_s = clock.parse(clock.now()).timestamp() - status.st_ctime
    if age_s > _SETTLED_S:
        if len(_known) >= _MOST_KNOWN:
            _known.clear()
        _known[identity] = digest
    return digest
