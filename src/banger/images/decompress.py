"""What kernels, modules and initramfs archives are compressed with, undone: bounded in output and memory, known by its first bytes.

The list is that of the kernel's Kconfig (HAVE_KERNEL_GZIP … HAVE_KERNEL_ZSTD) with the magic numbers of
Documentation/arch/x86/boot.rst, "payload_offset". LZO has no well-kept library of Python's: the program ``lzop`` undoes it.
"""

from __future__ import annotations

import bz2
import lzma
import struct
import sys
import tempfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, Protocol

import lz4.block

from banger.host.exec import find_program, run_sync
from banger.model.errors import CommandFailedError, InvalidInputError
from banger.model.units import format_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

_MEMORY_BYTES = (
    512 << 20
)  # for a dictionary: `xz -9` needs 65 MiB, a forged header may ask for 4 GiB
_ZSTD_WINDOW_LOG = 27  # what `zstd -22 --ultra`, the kernel's own call, uses at most
_LZ4_BLOCK_BYTES = 8 << 20  # lz4_Frame_format.md, "Legacy frame": blocks of 8 MB
_LZOP_S = 60.0


class _Decompressor(Protocol):
    """What the decompressors of zlib, bz2, lzma and zstd have in common."""

    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _stream(make: Callable[[], _Decompressor]) -> Callable[[bytes, int], bytes]:
    def whole(data: bytes, limit_bytes: int) -> bytes:
        decompressor = make()
        try:
            plain = decompressor.decompress(data, limit_bytes + 1)
        except OSError as error:  # bz2's word for damage
            raise ValueError(str(error)) from error
        if not decompressor.eof and len(plain) <= limit_bytes:
            raise ValueError("it is cut off")
        return plain

    return whole


def _lz4_legacy(data: bytes, limit_bytes: int) -> bytes:
    """A legacy frame has no end mark: it ends with the data."""
    blocks, total, position = [], 0, 4
    while position < len(data) and total <= limit_bytes:
        (size,) = struct.unpack_from("<I", data, position)
        block = data[position + 4 : position + 4 + size]
        if len(block) < size:
            raise ValueError("it is cut off")
        blocks.append(lz4.block.decompress(block, uncompressed_size=_LZ4_BLOCK_BYTES))
        total += len(blocks[-1])
        position += 4 + size
    return b"".join(blocks)


def _lzop(data: bytes, limit_bytes: int) -> bytes:
    """The program writes into a file, because that is what a resource limit can bound."""
    with tempfile.TemporaryDirectory(prefix="banger-lzop-") as name:
        plain = Path(name) / "plain"
        argv: list[str | Path] = [
            *(find_program("prlimit", package="util-linux"), f"--fsize={limit_bytes + 1}", "--"),
            *(find_program("lzop", package="lzop"), "-q", "-d", "-o", plain),
        ]
        try:
            run_sync(argv, timeout_s=_LZOP_S, input=data)
        except CommandFailedError:
            if plain.exists() and plain.stat().st_size > limit_bytes:
                return plain.read_bytes()
            raise
        return plain.read_bytes()


class _Format(NamedTuple):
    magic: bytes
    undo: Callable[[bytes, int], bytes]


FORMATS = {
    "gzip": _Format(b"\x1f\x8b", _stream(lambda: zlib.decompressobj(wbits=31))),
    "bzip2": _Format(b"BZh", _stream(bz2.BZ2Decompressor)),
    "xz": _Format(b"\xfd7zXZ\0", _stream(lambda: lzma.LZMADecompressor(memlimit=_MEMORY_BYTES))),
    "lzma": _Format(b"\x5d\0\0", _stream(lambda: lzma.LZMADecompressor(memlimit=_MEMORY_BYTES))),
    "lzo": _Format(b"\x89LZO\0\r\n\x1a\n", _lzop),
    "lz4": _Format(b"\x02\x21\x4c\x18", _lz4_legacy),
    "zstd": _Format(
        b"\x28\xb5\x2f\xfd",
        _stream(
            lambda: zstd.ZstdDecompressor(
                options={zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW_LOG}
            )
        ),
    ),
}
"""In every format but lz4 the data says where it ends, and what lies behind is left alone."""

STREAM_ERRORS = (zlib.error, lzma.LZMAError, zstd.ZstdError, EOFError)
"""What the libraries raise at damaged data, beside OSError and ValueError."""
_DAMAGED = (
    *STREAM_ERRORS,
    *(lz4.block.LZ4BlockError, ValueError, struct.error, CommandFailedError),
)


def compression(data: bytes) -> str | None:
    """The name in `FORMATS` of what ``data`` is compressed with; None if it is none of them."""
    return next((name for name, form in FORMATS.items() if data.startswith(form.magic)), None)


def decompress(data: bytes, limit_bytes: int, *, what: str) -> bytes:
    """``data`` decompressed, at most ``limit_bytes``; it must be of one of the `FORMATS`.

    InvalidInputError if it is damaged, cut off or larger, naming it ``what``; HostLacksError if a program is missing.
    """
    name = compression(data)
    if name is None:
        raise InvalidInputError(
            f"{what} is compressed in an unknown way ({data[:4].hex()})",
            hint="decompress it first, or name another file",
        )
    try:
        plain = FORMATS[name].undo(data, limit_bytes)
    except _DAMAGED as error:
        below = f"{error} {error.detail}" if isinstance(error, CommandFailedError) else str(error)
        raise InvalidInputError(
            f"{what} is damaged", detail=f"{name}: {below}", hint="get the file again"
        ) from error
    if len(plain) > limit_bytes:
        raise InvalidInputError(
            f"{what} is larger than {format_size(limit_bytes)} when it is decompressed",
            hint="name a smaller file",
        )
    return plain
