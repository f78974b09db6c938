"""Streams that somebody else made, read in order: decompressed, counted, digested; never more than was allowed.

Unlike `decompress`, nothing is held in memory: layers and whole root file systems come this way.
"""

from __future__ import annotations

import bz2
import gzip
import hashlib
import io
import lzma
import sys
from collections.abc import Callable
from typing import IO, Final, cast

from banger.host import fs
from banger.images.decompress import STREAM_ERRORS, compression
from banger.model.compat import override
from banger.model.errors import InvalidInputError
from banger.model.units import format_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_PIECE_BYTES: Final = 1 << 20
_XZ_MEMORY_BYTES: Final = 512 << 20
_ZSTD_WINDOW_LOG: Final = 27
DAMAGED: Final = (*STREAM_ERRORS, gzip.BadGzipFile, OSError)


class _Xz(io.RawIOBase):
    """xz with a bound on its dictionary, which `lzma.LZMAFile` has not."""

    def __init__(self, source: IO[bytes]) -> None:
        self._source = source
        self._decompressor = lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        while True:
            if self._decompressor.eof:
                rest = (self._decompressor.unused_data or self._source.read(_PIECE_BYTES)).lstrip(
                    b"\0"
                )
                if not rest:
                    return 0
                self._decompressor = lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES)
            else:
                wanted = self._decompressor.needs_input
                rest = self._source.read(_PIECE_BYTES) if wanted else b""
                if wanted and not rest:
                    raise EOFError("it is cut off")
            data = self._decompressor.decompress(rest, len(view))
            if data:
                view[: len(data)] = data
                return len(data)


def _zstd(source: IO[bytes]) -> IO[bytes]:
    options = {int(zstd.DecompressionParameter.window_log_max): _ZSTD_WINDOW_LOG}
    return cast("IO[bytes]", zstd.ZstdFile(source, options=options))


_OPENERS: Final[dict[str, Callable[[IO[bytes]], IO[bytes]]]] = {
    "gzip": lambda source: cast("IO[bytes]", gzip.GzipFile(fileobj=source)),
    "bzip2": lambda source: cast("IO[bytes]", bz2.BZ2File(source)),
    "xz": lambda source: cast("IO[bytes]", io.BufferedReader(_Xz(source), _PIECE_BYTES)),
    "zstd": _zstd,
}


def open_plain(source: IO[bytes], head: bytes) -> IO[bytes]:
    """``source``, which begins with ``head``, decompressed if it is gzip, bzip2, xz or zstd; several streams in a row are one."""
    opener = _OPENERS.get(compression(head) or "")
    return source if opener is None else opener(source)


class Section(io.RawIOBase):
    """``size_bytes`` bytes of ``file`` from ``begin``, as a file of its own; reads by position, so that sections do not disturb each other."""

    def __init__(self, file: IO[bytes], begin: int, size_bytes: int) -> None:
        self._file, self._begin, self._size = file, begin, size_bytes
        self._at = 0

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        count = min(len(view), self._size - self._at)
        self._file.seek(self._begin + self._at)
        data = self._file.read(count)
        view[: len(data)] = data
        self._at += len(data)
        return len(data)


class Counted(io.RawIOBase):
    """Hands on ``source``, digests it, and raises InvalidInputError behind ``limit_bytes``.

    ``budget_bytes`` bounds what may be read until it is set again (None: nothing does).
    """

    def __init__(
        self, source: IO[bytes], limit_bytes: int, what: str, *, between: fs.Between = fs.go_on
    ) -> None:
        self._source, self._limit, self._what, self._between = source, limit_bytes, what, between
        self._digest = hashlib.sha256()
        self.count_bytes = 0
        self.budget_bytes: int | None = None

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: object) -> int:
        view = memoryview(buffer)  # type: ignore[arg-type]
        data = self.take(len(view))
        view[: len(data)] = data
        return len(data)

    def take(self, count: int) -> bytes:
        """Up to ``count`` bytes."""
        self._between()
        data = self._source.read(min(count, _PIECE_BYTES))
        self._digest.update(data)
        self.count_bytes += len(data)
        if self.count_bytes > self._limit:
            raise InvalidInputError(
                f"{self._what} is larger than {format_size(self._limit)}",
                hint="import something smaller, or free space; see: df -h",
            )
        if self.budget_bytes is not None:
            self.budget_bytes -= len(data)
            if self.budget_bytes < 0:
                raise InvalidInputError(
                    f"{self._what} has a header that is too large", hint="make the archive again"
                )
        return data

    def drain(self) -> None:
        """Read to the end, for the digest."""
        while self.take(_PIECE_BYTES):
            pass

    @property
    def digest(self) -> str:
        """SHA-256 in hex of what was read so far."""
        return self._digest.hexdigest()
