"""What an XBPS package may contain: checked here before any other program opens it.

A package is a compressed tar: INSTALL, REMOVE, props.plist and files.plist, then files (lib/package_unpack.c). Names begin with ``./``
and stay below; files, links and directories are all that there may be. A hard link's target is a member that came before it.
"""

from __future__ import annotations

import gzip
import lzma
import sys
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, cast

from banger.host import fs, tars
from banger.images.decompress import STREAM_ERRORS, compression
from banger.model.errors import BangerError, InvalidInputError
from banger.model.units import format_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MAX_MEMBERS = 500_000
_MAX_PLAIN_BYTES = 8 << 30
_OPENERS: dict[str, Callable[[Path], object]] = {
    "gzip": gzip.open,
    "xz": lzma.open,
    "zstd": zstd.open,
}


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """A compressed tar, for reading in order; ArchiveError, or an error of `STREAM_ERRORS`, where it is damaged."""
    with path.open("rb") as file:
        opener = _OPENERS.get(compression(file.read(16)) or "")
    if opener is None:
        raise tars.ArchiveError("it is compressed with neither gzip, xz nor zstd")
    with cast("IO[bytes]", opener(path)) as stream, tars.open_stream(stream) as archive:
        yield archive


def check_package(path: Path, pkgver: str, *, between: fs.Between = fs.go_on) -> None:
    """InvalidInputError if the package in ``path`` is damaged or has a member that leads out of a root, or is no file, link or directory."""
    try:
        with open_tar(path) as archive:
            total_bytes, seen, listed = 0, set[str](), False
            for number, member in enumerate(tars.members(archive)):
                between()
                total_bytes += member.size
                if number > _MAX_MEMBERS or total_bytes > _MAX_PLAIN_BYTES:
                    raise tars.ArchiveError(f"it has more than {_MAX_MEMBERS} members or {format_size(_MAX_PLAIN_BYTES)}")  # fmt: skip
                why = _why_not(member, seen)
                if why:
                    raise tars.ArchiveError(f"member {member.name[:200]!r} {why}")
                if member.isreg():
                    seen.add(member.name)
                listed = listed or member.name == "./files.plist"
            if not listed:
                raise tars.ArchiveError("it has no files.plist")
    except (BangerError, OSError, ValueError, *STREAM_ERRORS) as error:
        raise InvalidInputError(
            f"package {pkgver} is not one that banger installs",
            detail=f"{error} {getattr(error, 'detail', '')}".strip(),
            hint="banger image lock void",
        ) from error


def _why_not(member: tarfile.TarInfo, seen: set[str]) -> str:
    """Why a member may not be there; empty if it may."""
    if not _below(member.name):
        return "leads out of the root"
    if member.islnk():
        return "" if member.linkname in seen else f"is a link to {member.linkname[:200]!r}, no member before it"  # fmt: skip
    if member.isreg() or member.isdir() or member.issym():
        return ""
    return "is neither a file nor a link nor a directory"


def _below(name: str) -> bool:
    parts = name.split("/")
    return parts[0] == "." and ".." not in parts and "\0" not in name
