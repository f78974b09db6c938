"""Unpack a tar stream from a guest, and pack one for it.

What comes from a guest is hostile: names cannot leave the target, nothing is written through a symbolic link, devices are left
out, set-id bits are dropped, and headers that would fill the memory or the disk from a few bytes are refused.
"""

from __future__ import annotations

import os
import shutil
import stat
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final

from banger.host.tars import ArchiveError, members

COPY_BYTES: Final = 1 << 18


class Unpacker:
    """Unpacks members below ``target``: the first ``strip`` parts of every name stand for ``target`` itself."""

    def __init__(
        self, target: Path, *, strip: int, warn: Callable[[str], None] = lambda _: None
    ) -> None:
        self._target = target
        self._strip = strip
        self._warn = warn
        self._directories: list[tuple[Path, tarfile.TarInfo]] = []
        self._links: list[tuple[Path, tarfile.TarInfo]] = []
        self._files: set[Path] = set()

    def run(self, archive: tarfile.TarFile, first: tarfile.TarInfo) -> None:
        """Unpack everything, beginning with ``first`` (from `banger.host.tars.peek`).

        Symbolic links come last, so that nothing is written through them, then modes and times of directories.
        """
        self._one(archive, first)
        for member in members(archive):
            self._one(archive, member)
        for path, member in self._links:
            self._make_room(path)
            path.symlink_to(member.linkname)
            os.utime(path, (member.mtime, member.mtime), follow_symlinks=False)
        for path, member in reversed(self._directories):
            path.chmod(member.mode & 0o1777)
            os.utime(path, (member.mtime, member.mtime))

    def _path(self, name: str) -> Path:
        """Where a member goes; ArchiveError for a name that points elsewhere."""
        parts = [part for part in name.split("/") if part not in {"", "."}]
        if name.startswith("/") or ".." in parts or "\0" in name or len(name) > 4096:
            raise ArchiveError(f"the archive has a member with the name {name[:80]!r}")
        if len(parts) < self._strip:
            raise ArchiveError(f"the archive has the member {name[:80]!r}, which was not asked for")
        return self._target.joinpath(*parts[self._strip :])

    def _one(self, archive: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._path(member.name)
        if path != self._target:
            self._make_parents(path)
        if member.issparse():
            raise ArchiveError(
                f"{member.name[:80]!r} is a sparse member, which the agent never sends"
            )
        if member.isdir():
            self._directory(path, member)
        elif member.isreg():
            self._file(archive, path, member)
        elif member.issym():
            self._links.append((path, member))
        elif member.islnk():
            self._hard_link(path, member)
        elif member.isfifo():
            self._make_room(path)
            os.mkfifo(path, member.mode & 0o777)
        else:
            self._warn(f"{member.name}: a device, left out")

    def _make_parents(self, path: Path) -> None:
        """Directories between target and ``path``; one that is a link or a file is not passed through."""
        below = path.relative_to(self._target).parts[:-1]
        at = self._target
        for part in ("", *below):
            at = at / part if part else at
            try:
                mode = at.stat().st_mode if at == self._target else at.lstat().st_mode
            except FileNotFoundError:
                at.mkdir(mode=0o700)
                continue
            if not stat.S_ISDIR(mode):
                raise ArchiveError(
                    f"{at} is in the way: it is not a directory",
                    hint=f"choose another DST, or: mv {at} {at}.old",
                )

    def _make_room(self, path: Path) -> None:
        """Remove a file or link at ``path``; a directory is never replaced by something else."""
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            return
        if stat.S_ISDIR(mode):
            raise ArchiveError(
                f"{path} is a directory, which a file would replace",
                hint=f"choose another DST, or: mv {path} {path}.old",
            )
        path.unlink()

    def _directory(self, path: Path, member: tarfile.TarInfo) -> None:
        try:
            mode = path.lstat().st_mode
        except FileNotFoundError:
            path.mkdir(mode=0o700)
        else:
            if path == self._target and stat.S_ISLNK(mode):
                mode = path.stat().st_mode  # the caller's own link to where it wants the files
            if not stat.S_ISDIR(mode):
                raise ArchiveError(
                    f"{path} is in the way: it is not a directory",
                    hint=f"choose another DST, or: mv {path} {path}.old",
                )
            if not os.access(path, os.W_OK | os.X_OK):
                path.chmod(mode & 0o7777 | 0o700)
        self._directories.append((path, member))

    def _file(self, archive: tarfile.TarFile, path: Path, member: tarfile.TarInfo) -> None:
        source = archive.extractfile(member)
        if source is None:
            raise ArchiveError(f"{member.name[:80]!r} has no content")
        self._make_room(path)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(path, flags, 0o600), "wb") as file:
            try:
                shutil.copyfileobj(source, file, COPY_BYTES)
            except tarfile.TarError as error:
                raise ArchiveError("the archive is damaged", detail=str(error)) from error
            if file.tell() != member.size:
                raise ArchiveError(f"the archive ends in the middle of {member.name[:80]!r}")
            os.fchmod(file.fileno(), member.mode & 0o777)
            file.flush()
            os.utime(file.fileno(), (member.mtime, member.mtime))
        self._files.add(path)

    def _hard_link(self, path: Path, member: tarfile.TarInfo) -> None:
        source = self._path(member.linkname)
        if source not in self._files:
            raise ArchiveError(f"{member.name[:80]!r} is a link to a file that was not sent")
        self._make_room(path)
        os.link(source, path, follow_symlinks=False)
        self._files.add(path)


def pack(target: IO[bytes], source: Path, name: str) -> None:
    """Write ``source`` as ``name`` into ``target``; directories with all below. Everything belongs to root.

    With an empty ``name`` the content of the directory ``source`` is written.
    """
    with tarfile.open(fileobj=target, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        entries = (
            [(source, name)] if name else [(path, path.name) for path in sorted(source.iterdir())]
        )
        for path, arcname in entries:
            archive.add(path, arcname, filter=_as_root)


def _as_root(member: tarfile.TarInfo) -> tarfile.TarInfo:
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member
