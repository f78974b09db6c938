"""Kernel files: the ELF kernel out of a bzImage of every compression, and what is refused."""

import bz2
import gzip
import lzma
import random
import struct
import subprocess
import sys

import lz4.block
import pytest

from banger.host.exec import CommandFailedError
from banger.images import decompress as decompress_module
from banger.images import kernel as kernel_module
from banger.images.kernel import (
    bzimage_release,
    check_kernel_head,
    extract_vmlinux,
    has_text,
    read_facts,
    read_kernel_file,
)
from banger.model.errors import HostLacksError, InvalidInputError
from tests.framework.toy_root import KERNEL, RELEASE, bz_image, elf_kernel, lz4_legacy

# As scripts/Makefile.lib and scripts/xz_wrap.sh of the kernel call them; gzip's own end is the size.
COMPRESSORS = {
    "gzip": "gzip -n -f -9",
    "bzip2": "bzip2 -9",
    "lzma": "lzma -9",
    "xz": "xz --check=crc32 --x86 --lzma2=dict=32MiB",
    "lzo": "lzop -9",
    "lz4": "lz4 -l -9",
    "zstd": "zstd -22 --ultra",
}
BIG = elf_kernel(more=random.Random(1).randbytes(700_000) + bytes(9 << 20))  # two blocks of lz4's


def pack(name, data, *, size=None):
    """A bzImage around ``data``, compressed by the real program."""
    payload = subprocess.run(
        [*COMPRESSORS[name].split(), "-c"], input=data, capture_output=True, check=True
    ).stdout
    return bz_image(payload, None if name == "gzip" else len(data) if size is None else size)


@pytest.fixture(scope="module")
def packed():
    """The compressed kernels, made once: `zstd -22` takes its time."""
    return {name: pack(name, BIG) for name in COMPRESSORS}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_kernel_comes_out_as_it_went_in(packed, name):
    assert extract_vmlinux(packed[name]) == BIG


def test_a_kernel_that_is_not_compressed_comes_out_too():
    assert extract_vmlinux(bz_image(KERNEL)) == KERNEL


def test_an_elf_file_is_taken_as_it_is():
    assert extract_vmlinux(KERNEL) == KERNEL


@pytest.mark.parametrize("name", COMPRESSORS)
@pytest.mark.parametrize("kept", [0.2, 1])
def test_a_kernel_that_was_cut_off_is_told(packed, name, kept):
    image = packed[name]
    with pytest.raises(InvalidInputError, match="cut off") as raised:
        extract_vmlinux(image[: min(1040 + int((len(image) - 1040) * kept), len(image) - 1)])
    assert raised.value.hint


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_payload_without_its_end_is_told(packed, name):
    """The header tells of what is there: only the compressed data itself can be seen to have no end."""
    image = packed[name]
    payload = image[1040 : 1040 + (len(image) - 1040) // 2]
    with pytest.raises(InvalidInputError, match=r"damaged"):
        extract_vmlinux(bz_image(payload, len(BIG)))


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_damaged_payload_is_told(packed, name):
    image = bytearray(packed[name])
    begin = 1040 + 200_000
    image[begin : begin + 20_000] = bytes(20_000)
    try:
        assert extract_vmlinux(bytes(image)) != BIG  # lz4 and lzma have no checksum
    except InvalidInputError as error:
        assert "damaged" in error.what  # noqa: PT017  either is right, by the format
    else:
        assert name in {"lz4", "lzma"}


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_kernel_of_another_size_than_it_states_is_told(name):
    image = pack(name, KERNEL, size=len(KERNEL) + 1)
    if name == "gzip":
        image = image[:-4] + struct.pack("<I", len(KERNEL) + 1)
    with pytest.raises(InvalidInputError, match="payload is damaged"):
        extract_vmlinux(image)


@pytest.mark.parametrize("name", COMPRESSORS)
def test_a_kernel_without_end_is_refused(name, monkeypatch):
    monkeypatch.setattr(kernel_module, "MAX_KERNEL_BYTES", 1 << 20)
    with pytest.raises(InvalidInputError, match="larger than 1M"):
        extract_vmlinux(pack(name, elf_kernel(more=bytes(4 << 20))))


@pytest.mark.parametrize(
    ("bomb", "most_mib"),
    [
        (lambda: bz_image(gzip.compress(bytes(600 << 20), 1)), 900),
        (lambda: bz_image(lz4_bomb(), 1), 900),
    ],
)
def test_a_bomb_takes_no_more_memory_than_the_largest_kernel(bomb, most_mib, tmp_path):
    (tmp_path / "bomb").write_bytes(bomb())
    program = (
        "import resource, sys\n"
        "from banger.images.kernel import extract_vmlinux\n"
        f"resource.setrlimit(resource.RLIMIT_AS, ({most_mib << 20},) * 2)\n"
        "try:\n    extract_vmlinux(open(sys.argv[1], 'rb').read())\n"
        "except Exception as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, tmp_path / "bomb"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "larger than 256M" in done.stdout


def lz4_bomb():
    block = lz4.block.compress(bytes(8 << 20), store_size=False)
    return b"\x02\x21\x4c\x18" + (struct.pack("<I", len(block)) + block) * 40


def test_a_dictionary_that_would_take_all_memory_is_refused():
    forged = lzma.compress(KERNEL, format=lzma.FORMAT_ALONE)
    forged = forged[:1] + struct.pack("<I", 0xFFFFFFFF) + forged[5:]
    forged = b"\x5d\0\0" + forged[3:]
    with pytest.raises(InvalidInputError, match="damaged"):
        extract_vmlinux(bz_image(forged, len(KERNEL)))


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (b"", "neither an ELF file nor a bzImage"),
        (b"MZ" + bytes(4096), "neither an ELF file nor a bzImage"),
        (b"#!/bin/sh\n" * 100, "neither an ELF file nor a bzImage"),
        (bz_image(b"\x01\x02\x03\x04" + bytes(100), 1), r"unknown way \(01020304\)"),
        (bz_image(gzip.compress(b"no elf")), "no ELF file"),
        (bz_image(bz2.compress(KERNEL)[:100], 1), "damaged"),
        (bz_image(lz4_legacy(KERNEL)[:4] + struct.pack("<I", 50) + b"\xff" * 50, 1), "damaged"),
        (bz_image(b""), "cut off"),
        (bz_image(b"")[:0x240], "neither"),
    ],
)
def test_anything_else_is_refused_in_words(image, said):
    with pytest.raises(InvalidInputError, match=said):
        extract_vmlinux(image)


def test_an_lzo_kernel_without_the_program_names_its_package(monkeypatch):
    image = pack("lzo", KERNEL)
    real = decompress_module.find_program

    def find(name, *, package=None):
        if name == "lzop":
            name = "no-such-lzop"
        return real(name, package=package)

    monkeypatch.setattr(decompress_module, "find_program", find)
    with pytest.raises(HostLacksError, match="was not found") as raised:
        extract_vmlinux(image)
    assert "lzop" in raised.value.hint


def test_a_program_that_does_not_end_is_told(monkeypatch):
    def hang(argv, **options):
        raise CommandFailedError(tuple(map(str, argv)), "did not end within 60 s")

    monkeypatch.setattr(decompress_module, "run_sync", hang)
    with pytest.raises(InvalidInputError) as raised:
        extract_vmlinux(pack("lzo", KERNEL))
    assert "did not end" in raised.value.detail


def test_the_release_is_read_from_a_bzimage_and_from_an_elf_kernel(tmp_path):
    assert bzimage_release(bz_image(b"", release="6.12.1_1")) == "6.12.1_1"
    assert bzimage_release(bz_image(b"", release="ü")) == ""
    assert bzimage_release(bytes(1024)) == ""
    (tmp_path / "k").write_bytes(KERNEL)
    assert read_facts(tmp_path / "k").release == RELEASE


@pytest.mark.parametrize(
    ("notes", "pvh"), [(((b"Xen\0", 18),), True), (((b"GNU\0", 3),), False), ((), False)]
)
def test_whether_a_kernel_can_be_entered_by_pvh_is_known(tmp_path, notes, pvh):
    (tmp_path / "k").write_bytes(elf_kernel(notes=notes))
    assert read_facts(tmp_path / "k").pvh is pvh


@pytest.mark.parametrize(
    ("kernel", "said"),
    [
        (elf_kernel(machine=183), "for aarch64"),
        (elf_kernel(machine=3, bits=32), "for i386"),
        (b"\x7fELF" + bytes(100), "damaged"),
    ],
)
def test_an_elf_kernel_of_another_machine_is_refused(tmp_path, kernel, said):
    (tmp_path / "k").write_bytes(kernel)
    with pytest.raises(InvalidInputError, match=said):
        read_facts(tmp_path / "k")


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (b"MZ".ljust(0x38, b"\0") + b"ARM\x64" + bytes(600), "arm64"),
        (b"MZ".ljust(0x38, b"\0") + b"RSC\x05" + bytes(600), "RISC-V"),
        (b"MZ\0\0zimg" + bytes(600), "zboot"),
        (b"\x1f\x8b" + bytes(600), "neither an ELF file nor a bzImage"),
        (elf_kernel(machine=243)[:1024], "for riscv"),
        (b"", "neither"),
    ],
)
def test_a_file_that_is_no_kernel_for_this_machine_is_told_by_its_first_bytes(head, said):
    with pytest.raises(InvalidInputError, match=said) as raised:
        check_kernel_head(head, "kernel /x")
    assert "bzImage" in raised.value.hint


def test_both_kinds_pass_by_their_first_bytes():
    check_kernel_head(KERNEL[:1024], "kernel")
    check_kernel_head(bz_image(b"")[:1024], "kernel")


def test_a_driver_that_is_built_in_is_found_by_its_name(tmp_path):
    (tmp_path / "k").write_bytes(elf_kernel(more=b"\0virtio_blk\0virtio_netx"))
    assert has_text(tmp_path / "k", b"virtio_blk")
    assert not has_text(tmp_path / "k", b"virtio_net")


def test_a_file_larger_than_any_kernel_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(kernel_module, "MAX_KERNEL_BYTES", 1000)
    (tmp_path / "k").write_bytes(bytes(1001))
    with pytest.raises(InvalidInputError, match="larger than 1000B"):
        read_kernel_file(tmp_path / "k")
    (tmp_path / "k").write_bytes(bytes(1000))
    assert read_kernel_file(tmp_path / "k") == bytes(1000)
