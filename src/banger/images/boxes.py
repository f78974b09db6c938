"""Where an image's documents and layers lie: a directory, or a tar. And what kind of thing a user has given at all."""

from __future__ import annotations

import io
import os
import posixpath
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, Literal, cast

from banger.host import fs, tars
from banger.images.decompress import compression
from banger.images.layers import MAX_MEMBERS, MAX_ROOT_BYTES, damage_told
from banger.images.plain import Counted, Section, open_plain
from banger.model.compat import override
from banger.model.errors import InvalidInputError, NotFoundError

EXPORT_HEAD: Final = "banger-image.json"
SourceKind = Literal["ext4", "qcow2", "tar", "oci", "docker", "export", "disk"]
HEAD_BYTES: Final = 4096
_QCOW2, _EXT4_AT, _EXT4, _USTAR_AT, _USTAR = b"QFI\xfb", 0x438, b"\x53\xef", 257, b"ustar"
_GPT_AT, _GPT, _MBR_AT, _MBR = 512, b"EFI PART", 510, b"\x55\xaa"
_MAX_HOPS: Final = 8


def open_regular(path: Path, what: str) -> IO[bytes]:
    """The regular file ``path``, opened without waiting for whoever is at the other end of a FIFO; NotFoundError, InvalidInputError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"{what} {path} does not exist", hint=f"ls -l {path.parent}") from None
    except OSError as error:
        hint = f"chmod a+r {path}" if isinstance(error, PermissionError) else f"ls -l {path}"
        raise InvalidInputError(
            f"{what} {path} cannot be read by the daemon",
            detail=f"{error.strerror}; the daemon's user id is {os.geteuid()}",
            hint=hint,
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInputError(f"{what} {path} is no regular file", hint=f"ls -l {path}")
    return os.fdopen(descriptor, "rb")


def head_of(path: Path, what: str) -> bytes:
    """The first `HEAD_BYTES` of a regular file."""
    with open_regular(path, what) as file:
        return file.read(HEAD_BYTES)


def kind_by_head(head: bytes) -> SourceKind | None:
    """What a file is by its beginning, as far as that says it: a tar may be an archive of an image, or a root; None for nothing known."""
    if head.startswith(_QCOW2):
        return "qcow2"
    if head[_EXT4_AT : _EXT4_AT + 2] == _EXT4:
        return "ext4"
    if head[_USTAR_AT : _USTAR_AT + 5] == _USTAR or compression(head) in {"gzip", "bzip2", "xz", "zstd"}:  # fmt: skip
        return "tar"
    if head[_GPT_AT : _GPT_AT + 8] == _GPT or head[_MBR_AT : _MBR_AT + 2] == _MBR:
        return "disk"
    return None


def quick_kind(path: Path, what: str) -> SourceKind:
    """What ``path`` is, as far as that is seen quickly; NotFoundError or InvalidInputError if it is nothing that has a root."""
    if path.is_dir():
        if (path / "oci-layout").is_file() and (path / "index.json").is_file():
            return "oci"
        raise InvalidInputError(
            f"{what} {path} is a directory, but no OCI layout",
            detail="it has no oci-layout and index.json",
            hint=f"tar -C {path} --numeric-owner -cf root.tar . , then give root.tar",
        )
    head = head_of(path, what)
    kind = kind_by_head(head)
    if kind is None:
        raise InvalidInputError(
            f"{what} {path} is no root file system" if head else f"{what} {path} is empty",
            detail="an ext4, a qcow2, a tar, an OCI layout or a docker save archive is",
            hint=f"file {path}",
        )
    return kind


class DirectoryBox:
    """The files of an OCI layout directory."""

    def __init__(self, path: Path) -> None:
        self.what = str(path)
        self._path = path

    def has(self, name: str) -> bool:
        """Whether there is a regular file ``name``."""
        return (self._path / name).is_file()

    def open(self, name: str) -> tuple[IO[bytes], int]:
        """See `oci.Box`."""
        try:
            file = open_regular(self._path / name, "file")
        except NotFoundError:
            raise _missing(name, self.what) from None
        return file, os.fstat(file.fileno()).st_size


@dataclass(frozen=True, slots=True)
class _Place:
    begin: int
    size_bytes: int
    link: str = ""


class TarBox:
    """The files of an uncompressed tar, which are found by one pass over its headers."""

    def __init__(self, path: Path, what: str, *, between: fs.Between = fs.go_on) -> None:
        self.what = what
        self._path = path
        self._places: dict[str, _Place] = {}
        self.first = ""
        with damage_told(what), open_regular(path, "file") as file:
            size_bytes = os.fstat(file.fileno()).st_size
            archive = tars.open_file(file)
            for number, info in enumerate(tars.members(archive)):
                between()
                name = posixpath.normpath(info.name.lstrip("/") or ".")
                self.first = self.first or name
                if number >= MAX_MEMBERS:
                    raise InvalidInputError(f"{what} has over {MAX_MEMBERS} files", hint="import something smaller")  # fmt: skip
                if info.isreg() and info.sparse is None:
                    if info.offset_data + info.size > size_bytes:
                        raise InvalidInputError(f"{what} is cut off", detail=info.name[:200], hint="get the file again")  # fmt: skip
                    self._places[name] = _Place(info.offset_data, info.size)
                elif info.issym() or info.islnk():
                    base = posixpath.dirname(name) if info.issym() else ""
                    self._places[name] = _Place(0, 0, posixpath.normpath(posixpath.join(base, info.linkname)))  # fmt: skip

    def has(self, name: str) -> bool:
        """Whether there is a file ``name``."""
        return name in self._places

    def open(self, name: str) -> tuple[IO[bytes], int]:
        """See `oci.Box`. Links within the archive are followed: older versions of docker save share layers so."""
        place = self._places.get(name)
        for _ in range(_MAX_HOPS):
            if place is None or not place.link:
                break
            place = self._places.get(place.link)
        if place is None or place.link:
            raise _missing(name, self.what)
        section = _Owned(open_regular(self._path, "file"), place.begin, place.size_bytes)
        return cast("IO[bytes]", io.BufferedReader(section, 1 << 20)), place.size_bytes

    @property
    def kind(self) -> SourceKind:
        """What the archive is."""
        if self.first == EXPORT_HEAD:
            return "export"
        if {"oci-layout", "index.json"} <= set(self._places):
            return "oci"
        if "manifest.json" in self._places and any(name.endswith((".tar", ".json")) for name in self._places):  # fmt: skip
            return "docker"
        return "tar"


class _Owned(Section):
    """A section that closes its file."""

    @override
    def close(self) -> None:
        self._file.close()
        super().close()


def _missing(name: str, what: str) -> InvalidInputError:
    return InvalidInputError(
        f"{what} lacks {name[:200]}", detail="it is incomplete", hint="get the file again"
    )


def first_name(path: Path, what: str) -> str:
    """The name of the first member of a tar, compressed or not."""
    with open_regular(path, what) as file, damage_told(f"{what} {path}"):
        head = file.read(HEAD_BYTES)
        file.seek(0)
        plain = Counted(open_plain(file, head), 64 << 20, f"{what} {path}")
        first = tars.peek(tars.open_stream(cast("IO[bytes]", plain)))
        return "" if first is None else posixpath.normpath(first.name)


def spool(path: Path, target: Path, limit_bytes: int, *, between: fs.Between = fs.go_on) -> Path:
    """``path`` itself if it is not compressed, else ``target`` with what is in it."""
    with open_regular(path, "file") as file:
        head = file.read(HEAD_BYTES)
        if compression(head) not in {"gzip", "bzip2", "xz", "zstd"}:
            return path
        file.seek(0)
        with damage_told(str(path)), target.open("xb") as plain:
            counted = Counted(open_plain(file, head), min(limit_bytes, MAX_ROOT_BYTES), str(path), between=between)  # fmt: skip
            shutil.copyfileobj(cast("IO[bytes]", counted), plain, 1 << 20)
    return target
