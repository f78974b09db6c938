"""The ELF kernel out of a distribution's bzImage.

A bzImage's setup header (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header") gives setup_sects at 0x1f1, the magic "HdrS"
at 0x202, payload_offset at 0x248 and payload_length at 0x24c; the payload is a compressed ELF vmlinux, and for most compressions
its last four bytes are the uncompressed size.
"""

from __future__ import annotations

import lzma
import struct
import zlib
from typing import Protocol

import lz4.block

from banger.model.errors import HostLacksError

_ELF = b"\x7fELF"
_LZ4_LEGACY = b"\x02\x21\x4c\x18"
_LZ4_BLOCK_BYTES = 8 << 20  # lz4_Frame_format.md, "Legacy frame": blocks of 8 MB
MAX_KERNEL_BYTES = 256 << 20


def extract_vmlinux(image: bytes) -> bytes:
    """The ELF kernel in ``image``: as it is if it is one already, else decompressed (LZ4, gzip, xz). HostLacksError otherwise."""
    if image.startswith(_ELF):
        return image
    if len(image) < 0x250 or image[0x202:0x206] != b"HdrS":
        raise HostLacksError(
            "the kernel is neither an ELF file nor a bzImage", hint="use the distribution's vmlinuz"
        )
    setup_bytes = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    payload = image[setup_bytes + offset : setup_bytes + offset + length]
    kernel = _decompress(payload)
    if not kernel.startswith(_ELF):
        raise HostLacksError(
            "the kernel's payload is no ELF file after decompression",
            hint="name another kernel package in the recipe",
        )
    return kernel


def _decompress(payload: bytes) -> bytes:
    try:
        if payload.startswith(_LZ4_LEGACY):
            return _lz4_legacy(payload[4:-4])
        if payload.startswith(b"\x1f\x8b"):
            return _whole(zlib.decompressobj(wbits=31), payload[:-4])
        if payload.startswith(b"\xfd7zXZ"):
            return _whole(lzma.LZMADecompressor(), payload[:-4])
    except (zlib.error, lzma.LZMAError, lz4.block.LZ4BlockError) as error:
        raise HostLacksError(
            "the kernel's payload is damaged",
            detail=str(error),
            hint="name another kernel package in the recipe",
        ) from error
    raise HostLacksError(
        f"the kernel is compressed in an unknown way ({payload[:4].hex()})",
        hint="name another kernel package in the recipe",
    )


class _Decompressor(Protocol):
    """What zlib's and lzma's have in common."""

    @property
    def eof(self) -> bool: ...
    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _whole(decompressor: _Decompressor, data: bytes) -> bytes:
    kernel = decompressor.decompress(data, MAX_KERNEL_BYTES)
    if not decompressor.eof:
        raise HostLacksError(
            "the kernel's payload is cut off, or larger than 256 MiB",
            hint="name another kernel package in the recipe",
        )
    return kernel


def _lz4_legacy(data: bytes) -> bytes:
    blocks = []
    total = position = 0
    while position + 4 <= len(data):
        (size,) = struct.unpack_from("<I", data, position)
        position += 4
        if size == 0 or position + size > len(data):
            break
        blocks.append(
            lz4.block.decompress(
                data[position : position + size], uncompressed_size=_LZ4_BLOCK_BYTES
            )
        )
        total += len(blocks[-1])
        position += size
        if total > MAX_KERNEL_BYTES:
            raise HostLacksError(
                "the kernel is larger than 256 MiB",
                hint="name another kernel package in the recipe",
            )
    return b"".join(blocks)
