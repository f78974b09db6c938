"""From an archive or a directory into an empty directory: the manifest's files, each verified, and nothing else.

The archive is a tar, plain or gzip. Its digest was compared before, so what is refused here is what a careless or hostile maker
of a pinned archive could do: links, devices, names that lead elsewhere, files that nobody named, more bytes than were announced.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Final, cast

from banger.bundle import tree
from banger.bundle.manifest import FileTable, Manifest
from banger.host import tars
from banger.host.tars import ArchiveError

Advance = Callable[[int, int], None]
_BLOCK_BYTES: Final = 1 << 18
_SLACK_BYTES: Final = 1 << 20
_HEADERS_BYTES: Final = 4096  # of one member: its own, extended ones, padding
_KINDS: Final = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
}
_OTHER_FORMATS: Final = {
    b"\xfd7zXZ\0": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd", b"PK\x03\x04": "zip",
}  # fmt: skip


class _Bounded:
    """Reads no more than ``limit`` bytes; one more is an ArchiveError."""

    def __init__(self, source: IO[bytes], limit: int) -> None:
        self._source, self._left, self._limit = source, limit, limit

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes."""
        data = self._source.read(size)
        self._left -= len(data)
        if self._left < 0:
            raise ArchiveError(
                f"the archive unpacks to more than the {self._limit} bytes that its manifest allows"
            )
        return data


def from_archive(archive: IO[bytes], manifest: Manifest, target: Path, advance: Advance) -> None:
    """Write the manifest's files from ``archive`` below ``target``, an empty directory. Raises ArchiveError."""
    head = archive.read(8)
    archive.seek(0)
    for magic, name in _OTHER_FORMATS.items():
        if head.startswith(magic):
            raise ArchiveError(
                f"the archive is {name}; a runtime bundle is a tar, plain or gzip",
                hint="banger runtime package makes one from the unpacked files",
            )
    zipped = head.startswith(b"\x1f\x8b")
    source = cast("IO[bytes]", gzip.GzipFile(fileobj=archive)) if zipped else archive
    bounded = _Bounded(source, _limit(manifest))
    try:
        with tars.open_stream(cast("IO[bytes]", bounded)) as stream:
            _Unpacking(manifest, target, advance).run(stream)
    except (tarfile.TarError, EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ArchiveError("the archive is damaged", detail=str(error)) from error


def _limit(manifest: Manifest) -> int:
    if manifest.other_members == "skip":
        return manifest.unpacked_max_bytes
    return manifest.content_bytes + len(manifest.files) * _HEADERS_BYTES + _SLACK_BYTES


class _Unpacking:
    """One archive on its way into one directory."""

    def __init__(self, manifest: Manifest, target: Path, advance: Advance) -> None:
        self._wanted = {file.source: file for file in manifest.files}
        self._folders = {str(p) for name in self._wanted for p in Path(name).parents}
        self._skip = manifest.other_members == "skip"
        self._writer = _Writer(manifest, target, advance)

    def run(self, stream: tarfile.TarFile) -> None:
        seen: set[str] = set()
        for member in tars.members(stream):
            name = _safe_name(member)
            file = self._wanted.get(name)
            if member.isdir():
                if name not in self._folders and not self._skip:
                    raise _unnamed(member)
            elif file is None:
                if not self._skip:
                    raise _unnamed(member)
            elif name in seen:
                raise ArchiveError(f"the archive holds {name!r} twice")
            else:
                seen.add(name)
                content = stream.extractfile(member)
                if content is None or member.size != file.size_bytes:
                    raise ArchiveError(
                        f"{name!r} has {member.size} bytes, the manifest says {file.size_bytes}"
                    )
                self._writer.write(file, content, "the archive")
        missing = sorted(self._wanted.keys() - seen)
        if missing:
            raise ArchiveError("the archive lacks files", detail="\n".join(missing))


def _unnamed(member: tarfile.TarInfo) -> ArchiveError:
    return ArchiveError(f"the archive holds {member.name[:80]!r}, which its manifest does not name")


def _safe_name(member: tarfile.TarInfo) -> str:
    """The member's name below the archive's top (``.`` for the top); ArchiveError for what no bundle may hold, named or not."""
    shown = repr(member.name[:80])
    plain = member.type in {tarfile.REGTYPE, tarfile.AREGTYPE} and not member.issparse()
    if not plain and not member.isdir():
        kind = _KINDS.get(member.type, "neither file nor directory")
        raise ArchiveError(f"{shown} in the archive is {kind}")
    parts = member.name.split("/")
    if member.name.startswith("/") or ".." in parts or "\0" in member.name:
        raise ArchiveError(f"{shown} in the archive leads out of it")
    return "/".join(part for part in parts if part not in {"", "."}) or "."


def from_directory(source: Path, manifest: Manifest, target: Path, advance: Advance) -> None:
    """Write the manifest's files from the directory ``source`` below ``target``, an empty directory.

    A file lies at its path, or where it would be in the archive, or is called as in an unpacked release of Firecracker.
    HostLacksError or InvalidInputError if one cannot be read or is none, ArchiveError if it is another one.
    """
    writer = _Writer(manifest, target, advance)
    for file in manifest.files:
        places = [source / file.path, source / file.source]
        if file.path in tree.PROGRAMS:
            places += tree.release_names(source, file.path, manifest.architecture)
        found = next((place for place in places if os.path.lexists(place)), places[0])
        with tree.open_source(found) as content:
            writer.write(file, content, str(source))


class _Writer:
    """Writes files below ``target`` and compares what was written with the manifest."""

    def __init__(self, manifest: Manifest, target: Path, advance: Advance) -> None:
        self._target = target
        self._advance = advance
        self._done, self._total = 0, manifest.content_bytes

    def write(self, file: FileTable, content: IO[bytes], origin: str) -> None:
        """Write one file; zeros become holes. ArchiveError if size or digest differ from the manifest's."""
        path = self._target / file.path
        path.parent.mkdir(mode=0o755, parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        digest = hashlib.sha256()
        left = file.size_bytes
        with os.fdopen(os.open(path, flags, 0o600), "wb") as target:
            while left and (block := content.read(min(left, _BLOCK_BYTES))):
                digest.update(block)
                if block.count(0) == len(block):
                    target.seek(len(block), os.SEEK_CUR)
                else:
                    target.write(block)
                left -= len(block)
                self._done += len(block)
                self._advance(self._done, self._total)
            target.truncate(file.size_bytes)
            target.flush()
            os.fchmod(target.fileno(), file.mode_bits)
            os.fsync(target.fileno())
        if left or content.read(1):
            raise ArchiveError(
                f"{file.path} from {origin} has another size than the {file.size_bytes} bytes of the manifest"
            )
        if digest.hexdigest() != file.sha256:
            raise ArchiveError(
                f"{file.path} from {origin} is not the file that the manifest names",
                detail=f"its SHA-256 is {digest.hexdigest()}\nthe manifest says {file.sha256}",
            )
