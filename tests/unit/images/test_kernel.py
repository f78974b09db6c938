"""The ELF kernel out of a bzImage."""

import gzip
import lzma
import struct

import lz4.block
import pytest

from banger.images.kernel import extract_vmlinux
from banger.model.errors import HostLacksError
from tests.framework.toy_root import bz_image, lz4_legacy

KERNEL = b"\x7fELF" + bytes(range(256)) * 100


@pytest.mark.parametrize(
    "pack",
    [lz4_legacy, gzip.compress, lzma.compress, lambda data: lzma.compress(data, check=lzma.CHECK_CRC32)],
)  # fmt: skip
def test_a_kernel_comes_out_as_it_went_in(pack):
    assert extract_vmlinux(bz_image(pack(KERNEL), len(KERNEL))) == KERNEL


def test_an_lz4_kernel_of_several_blocks_comes_out_whole():
    big = KERNEL + bytes(20 << 20)
    assert extract_vmlinux(bz_image(lz4_legacy(big), len(big))) == big


def test_an_elf_file_is_taken_as_it_is():
    assert extract_vmlinux(KERNEL) == KERNEL


@pytest.mark.parametrize(
    "image",
    [
        b"",
        b"MZ" + bytes(4096),
        bz_image(b"\x28\xb5\x2f\xfd" + bytes(100), 1),
        bz_image(gzip.compress(b"no elf"), 6),
        bz_image(gzip.compress(KERNEL), 1)[:1200],
        bz_image(lz4_legacy(KERNEL)[:4] + struct.pack("<I", 50) + b"\xff" * 50, 1),
        bz_image(lzma.compress(KERNEL)[:-40], 1),
    ],
)
def test_anything_else_is_refused_in_words(image):
    with pytest.raises(HostLacksError, match="kernel"):
        extract_vmlinux(image)


def test_a_kernel_without_end_is_refused():
    block = lz4.block.compress(bytes(8 << 20), store_size=False)
    bomb = b"\x02\x21\x4c\x18" + (struct.pack("<I", len(block)) + block) * 40
    with pytest.raises(HostLacksError, match="larger than"):
        extract_vmlinux(bz_image(bomb, 1))
