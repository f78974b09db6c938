"""Kernel files: which kind one is, the ELF kernel out of a bzImage, and what must be known of it before it is booted.

A bzImage's setup header (Documentation/arch/x86/boot.rst, "The Real-Mode Kernel Header") gives setup_sects at 0x1f1, the magic "HdrS"
at 0x202, kernel_version at 0x20e, payload_offset at 0x248 and payload_length at 0x24c. The payload is a compressed ELF vmlinux, and its
last four bytes are the uncompressed size (arch/x86/boot/compressed/mkpiggy.c reads them there, whatever the compression).
"""

from __future__ import annotations

import mmap
import struct
from dataclasses import dataclass
from pathlib import Path

from banger.images import elf
from banger.images.decompress import compression, decompress
from banger.model.errors import InvalidInputError
from banger.model.units import format_size

MAX_KERNEL_BYTES = 256 << 20
HEAD_BYTES = 0x10300  # of a file tell its kind and, in a bzImage, hold the release: a 16-bit pointer leads to it
_HEADER_BYTES = 0x250
_OTHER_KERNELS = (  # offset, magic: Documentation/arch/arm64/booting.rst, arch/riscv/boot-image-header.rst, EFI zboot
    (0x38, b"ARM\x64", "an arm64 kernel"),
    (0x38, b"RSC\x05", "a RISC-V kernel"),
    (0x04, b"zimg", "an EFI zboot image of another architecture"),
)
_TAKEN = "give an x86-64 bzImage (vmlinuz) or ELF kernel (vmlinux)"


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """Of an ELF kernel: ``release`` as ``uname -r`` says it (empty: it is no Linux), ``pvh`` whether QEMU can enter it directly."""

    release: str
    pvh: bool


def is_bzimage(head: bytes) -> bool:
    """Whether a file that begins with ``head`` (592 bytes or more) is a bzImage."""
    return len(head) >= _HEADER_BYTES and head[0x202:0x206] == b"HdrS"


def check_kernel_head(head: bytes, what: str) -> None:
    """InvalidInputError unless a file that begins so may be a kernel: ELF for x86-64, or bzImage."""
    if is_bzimage(head):
        return
    for offset, magic, name in _OTHER_KERNELS:
        if head[offset : offset + len(magic)] == magic:
            raise InvalidInputError(f"{what} is {name}", hint=_TAKEN)
    if not head.startswith(elf.MAGIC):
        raise InvalidInputError(f"{what} is neither an ELF file nor a bzImage", hint=_TAKEN)
    if len(head) >= 20 and (machine := struct.unpack_from("<H", head, 18)[0]) != elf.X86_64:
        raise _wrong_machine(what, elf.Elf(machine, pvh=False, static=True))


def extract_vmlinux(image: bytes) -> bytes:
    """The ELF kernel in ``image``: as it is if it is one already, else decompressed out of a bzImage.

    InvalidInputError if there is none or it is damaged; HostLacksError if a program to decompress it is missing.
    """
    if image.startswith(elf.MAGIC):
        return image
    if not is_bzimage(image):
        raise InvalidInputError("the kernel is neither an ELF file nor a bzImage", hint=_TAKEN)
    setup_bytes = ((image[0x1F1] or 4) + 1) * 512
    offset, length = struct.unpack_from("<II", image, 0x248)
    begin = setup_bytes + offset
    payload = image[begin : begin + length]
    if len(payload) < length or length < 8:
        raise InvalidInputError(
            "the kernel's payload is cut off",
            detail=f"{max(0, len(image) - begin)} of {length} bytes are there",
            hint="get the file again",
        )
    if payload.startswith(elf.MAGIC):
        return payload
    body = payload[:-4] if compression(payload) in {"lz4", "lzo"} else payload
    kernel = decompress(body, MAX_KERNEL_BYTES, what="the kernel's payload")
    (stated,) = struct.unpack("<I", payload[-4:])
    if len(kernel) != stated:
        raise InvalidInputError(
            "the kernel's payload is damaged",
            detail=f"{len(kernel)} bytes came out of it, {stated} are stated",
            hint="get the file again",
        )
    if not kernel.startswith(elf.MAGIC):
        raise InvalidInputError(
            "the kernel's payload is no ELF file after decompression", hint="name another kernel"
        )
    return kernel


def bzimage_release(image: bytes) -> str:
    """The release that a bzImage's header states; empty if it states none."""
    (pointer,) = struct.unpack_from("<H", image, 0x20E)
    text = image[pointer + 0x200 : pointer + 0x200 + 128] if pointer else b""
    word = text.partition(b"\0")[0].split(b" ")[0]
    return word.decode() if word.isascii() and word.decode().isprintable() else ""


def read_facts(vmlinux: Path) -> KernelFacts:
    """What is known of the ELF kernel in the file ``vmlinux``; InvalidInputError if it is none for x86-64."""
    with vmlinux.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        found = elf.read_elf(data)
        if found is None:
            raise InvalidInputError("the kernel's ELF headers are damaged", hint=_TAKEN)
        if found.machine != elf.X86_64:
            raise _wrong_machine("the kernel", found)
        return KernelFacts(elf.linux_release(data), found.pvh)


def has_text(vmlinux: Path, text: bytes) -> bool:
    """Whether the zero-terminated string ``text`` is in the kernel: the name of a driver is, if it is built in."""
    with vmlinux.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as data:
        return data.find(text + b"\0") >= 0


def read_kernel_file(path: Path) -> bytes:
    """The bytes of ``path``; InvalidInputError if they are more than a kernel can be."""
    with path.open("rb") as file:
        data = file.read(MAX_KERNEL_BYTES + 1)
    if len(data) > MAX_KERNEL_BYTES:
        raise InvalidInputError(f"{path} is larger than {format_size(MAX_KERNEL_BYTES)}", hint=_TAKEN)  # fmt: skip
    return data


def _wrong_machine(what: str, found: elf.Elf) -> InvalidInputError:
    return InvalidInputError(f"{what} is for {found.architecture}, not for x86_64", hint=_TAKEN)
