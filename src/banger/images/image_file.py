"""An image as one file, or its boot stack: a zstd stream of a GNU tar that any tar reads.

The first member, `EXPORT_HEAD`, is JSON: ``{"format": 1, "manifest": {…}}``. The image's files follow in the manifest's order, as
sparse members where they have holes (GNU tar manual, "Old GNU Format"). Holes are the 64 KiB blocks that are all zeros, wherever the file
system has put them, and nobody's name or time is in it: equal images give equal files with one version of zstd.
"""

from __future__ import annotations

import io
import os
import sys
import tarfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, Final, Self, cast

import msgspec

from banger.api.malformed import NOT_JSON
from banger.host import fs, tars
from banger.images.boxes import EXPORT_HEAD, HEAD_BYTES, open_regular
from banger.images.layers import damage_told
from banger.images.plain import Counted, open_plain
from banger.images.seal import image_id, seal_file
from banger.model.errors import HostLacksError, InvalidInputError
from banger.model.manifest import MANIFEST_VERSION, FileEntry, ImageManifest
from banger.model.units import format_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

FORMAT: Final = 1
_LEVEL: Final = 3
_BLOCK_BYTES: Final = 64 * 1024
_PIECE_BYTES: Final = 1 << 20
_MAX_HEAD_BYTES: Final = 4 << 20
_MAX_MAP_BYTES: Final = 16 << 20
_MAX_EXTENTS: Final = 21 * (_MAX_MAP_BYTES // 512) // 2
_MAX_FILES: Final = 16
_MAX_FILE_BYTES: Final = 1 << 44
_FIRST_AT, _FIRST_COUNT, _MORE_COUNT, _EXTENDED_AT, _REAL_SIZE_AT = 386, 4, 21, 482, 483
_AGAIN: Final = "get the file again, or export the image again: banger image export NAME FILE"
Extent = tuple[int, int]


def extents_of(path: Path, *, between: fs.Between = fs.go_on) -> list[Extent]:
    """Begin and length of what in ``path`` is not zeros, in steps of 64 KiB."""
    found: list[Extent] = []
    zeros = bytes(_BLOCK_BYTES)
    for position, block in fs.data_blocks(path, _BLOCK_BYTES, between=between):
        if block == zeros[: len(block)]:
            continue
        if found and sum(found[-1]) == position:
            found[-1] = (found[-1][0], found[-1][1] + len(block))
        else:
            found.append((position, len(block)))
    return found


def write_image(
    target: IO[bytes],
    manifest: ImageManifest,
    directory: Path,
    names: Sequence[str],
    *,
    between: fs.Between = fs.go_on,
) -> None:
    """Write the image with the files ``names`` of ``directory``. HostLacksError if a file is not what the manifest says."""
    named = replace(manifest, id=image_id(manifest))  # another one if its work seed was renewed
    content = {"format": FORMAT, "manifest": msgspec.to_builtins(named)}
    head = msgspec.json.format(msgspec.json.encode(content))
    options = {
        int(zstd.CompressionParameter.compression_level): _LEVEL,
        int(zstd.CompressionParameter.checksum_flag): 1,
    }
    with zstd.ZstdFile(target, "w", options=options) as packed:
        info = tarfile.TarInfo(EXPORT_HEAD)
        info.size = len(head)
        packed.write(info.tobuf(tarfile.GNU_FORMAT) + head + bytes(-len(head) % 512))
        for name in names:
            entry = manifest.files[name]
            path = directory / name
            if fs.length_bytes(path) != entry.size_bytes or fs.sparse_digest(path, between=between) != entry.digest:  # fmt: skip
                raise HostLacksError(f"{path} is missing or damaged", hint=manifest.remedy)
            _write_file(cast("IO[bytes]", packed), name, path, entry.size_bytes, between)
        packed.write(bytes(1024))


def _write_file(
    packed: IO[bytes], name: str, path: Path, size_bytes: int, between: fs.Between
) -> None:
    extents = extents_of(path, between=between)
    if len(extents) > _MAX_EXTENTS:
        raise HostLacksError(
            f"{path} is too scattered to be exported",
            detail=f"{len(extents)} pieces",
            hint="banger image export --format oci NAME FILE",
        )
    packed.write(_header(name, extents, size_bytes))
    total = 0
    with path.open("rb") as file:
        for begin, length in extents:
            for position in range(begin, begin + length, _PIECE_BYTES):
                between()
                wanted = min(_PIECE_BYTES, begin + length - position)
                data = os.pread(file.fileno(), wanted, position)
                if len(data) != wanted:
                    raise HostLacksError(f"{path} changed while it was read", hint="banger image list")  # fmt: skip
                packed.write(data)
            total += length
    packed.write(bytes(-total % 512))


def _header(name: str, extents: list[Extent], size_bytes: int) -> bytes:
    """A header of type ``S`` with the map of a sparse file; of an ordinary file if it has no holes."""
    info = tarfile.TarInfo(name)
    info.size, info.mode = sum(length for _, length in extents), 0o444
    if info.size == size_bytes:
        return info.tobuf(tarfile.GNU_FORMAT)
    info.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    entries = [*extents, (size_bytes, 0)]
    header[_FIRST_AT:_EXTENDED_AT] = _entries(entries[:_FIRST_COUNT], _FIRST_COUNT)
    rest = entries[_FIRST_COUNT:]
    header[_EXTENDED_AT] = bool(rest)
    header[_REAL_SIZE_AT : _REAL_SIZE_AT + 12] = _number(size_bytes)
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    for begin in range(0, len(rest), _MORE_COUNT):
        more = _entries(rest[begin : begin + _MORE_COUNT], _MORE_COUNT)
        header += more + bytes([begin + _MORE_COUNT < len(rest)]) + bytes(7)
    return bytes(header)


def _entries(extents: list[Extent], count: int) -> bytes:
    return b"".join(_number(begin) + _number(length) for begin, length in extents).ljust(24 * count, b"\0")  # fmt: skip


def _number(value: int) -> bytes:
    """Eleven octal digits, or base 256 for what these cannot say."""
    return b"%011o\0" % value if value < 8**11 else b"\x80" + value.to_bytes(11, "big")


class ImageFile:
    """An exported image while it is read: ``manifest`` is known at once, `unpack` does the rest."""

    def __init__(self, path: Path, *, between: fs.Between = fs.go_on) -> None:
        self._what = f"image file {path}"
        self._between = between
        self._begun = False
        self._file = open_regular(path, "image file")
        try:
            with damage_told(self._what):
                head = self._file.read(HEAD_BYTES)
                self._file.seek(0)
                plain = open_plain(self._file, head)
                self._stream = Counted(plain, _MAX_FILE_BYTES, self._what, between=between)
                self._stream.budget_bytes = _MAX_MAP_BYTES
                self._tar = tars.open_stream(cast("IO[bytes]", self._stream))
            self.manifest = self._read_head()
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._file.close()

    def _read_head(self) -> ImageManifest:
        info = self._next()
        if info is None or info.name != EXPORT_HEAD or not 0 < info.size <= _MAX_HEAD_BYTES:
            raise InvalidInputError(f"{self._what} is no exported image", hint=_AGAIN)
        with damage_told(self._what):
            data = self._content(info).read()
        try:
            loose = msgspec.json.decode(data, type=dict[str, Any])
            version = max(int(loose["format"]) - FORMAT, int(loose["manifest"]["version"]) - MANIFEST_VERSION)  # fmt: skip
            if version > 0:
                raise InvalidInputError(
                    f"{self._what} was exported by a newer banger", hint="upgrade banger, then import it again"
                )  # fmt: skip
            manifest = msgspec.convert(loose["manifest"], type=ImageManifest)
        except (*NOT_JSON, KeyError, TypeError, ValueError) as error:
            raise InvalidInputError(f"{self._what} is malformed", detail=str(error)[:500], hint=_AGAIN) from error  # fmt: skip
        self._check(manifest)
        return manifest

    def _check(self, manifest: ImageManifest) -> None:
        if image_id(manifest) != manifest.id:
            raise InvalidInputError(
                f"{self._what} is not what its digest says",
                detail=f"its manifest says image {manifest.id[:40]!r}, its content is {image_id(manifest)}",
                hint=_AGAIN,
            )
        allowed = {"rootfs.img", "work-seed.img", "vmlinux", "vmlinuz", "initramfs.img"}
        strange = set(manifest.files) - allowed
        sizes = [entry.size_bytes for entry in manifest.files.values()]
        if strange or len(sizes) > _MAX_FILES or any(not 0 <= size <= _MAX_FILE_BYTES for size in sizes):  # fmt: skip
            raise InvalidInputError(f"{self._what} holds files that no image has", detail=" ".join(sorted(strange))[:200], hint=_AGAIN)  # fmt: skip

    def unpack(self, target: Path, names: Sequence[str]) -> dict[str, FileEntry]:
        """Write the files ``names``, which are all that follow, into the directory ``target``, sealed and held to their digests.

        HostLacksError if they do not fit.
        """
        made = {}
        for name in names:
            info = self._next()
            wanted = self.manifest.files[name]
            if info is None or info.name != name or not info.isreg() or info.size != wanted.size_bytes:  # fmt: skip
                raise InvalidInputError(f"{self._what} lacks {name}", hint=_AGAIN)
            self._write(info, target / name)
            made[name] = seal_file(target / name, between=self._between)
            if made[name] != wanted:
                raise InvalidInputError(
                    f"{name} in {self._what} is not what its digest says",
                    detail=f"{wanted.digest} is expected, {made[name].digest} came",
                    hint=_AGAIN,
                )
        if self._next() is not None:
            raise InvalidInputError(f"{self._what} holds more than an image", hint=_AGAIN)
        with damage_told(self._what):
            self._stream.drain()
        return made

    def _next(self) -> tarfile.TarInfo | None:
        with damage_told(self._what):
            self._stream.budget_bytes = None
            if self._begun:  # else the first member, which was read at once, is passed by that
                self._tar.fileobj.seek(self._tar.offset)
            self._stream.budget_bytes = _MAX_MAP_BYTES
            info = self._tar.next()
            self._stream.budget_bytes = None
            self._begun = True
            return info

    def _content(self, info: tarfile.TarInfo) -> IO[bytes]:
        found = self._tar.extractfile(info)
        return io.BytesIO() if found is None else found

    def _write(self, info: tarfile.TarInfo, path: Path) -> None:
        sparse = cast("list[Extent] | None", info.sparse)  # typeshed has a number here
        pieces = [(0, info.size)] if sparse is None else [piece for piece in sparse if piece[1]]
        stored = sum(length for _, length in pieces)
        free = fs.free_bytes(path.parent)
        if stored > free:
            raise HostLacksError(
                f"no space to import {self._what}",
                detail=f"{format_size(free)} are free, {format_size(stored)} are needed",
                hint=f"free some, or set BANGER_STATE_DIR to another disk; see: df -h {path.parent.parent}",
            )
        with path.open("xb") as file, damage_told(self._what):
            file.truncate(info.size)
            stored_data = cast("IO[bytes]", self._tar.fileobj)
            stored_data.seek(info.offset_data)  # what is stored lies there without a gap
            position = 0
            for begin, length in pieces:
                if begin < position or begin + length > info.size:
                    raise ValueError("the map of a sparse file is out of order")
                file.seek(begin)
                _copy(stored_data, file, length)
                position = begin + length


def _copy(source: IO[bytes], target: IO[bytes], length: int) -> None:
    while length:
        data = source.read(min(_PIECE_BYTES, length))
        if not data:
            raise EOFError("it is cut off")
        target.write(data)
        length -= len(data)
