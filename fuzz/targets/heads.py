"""Beginnings of files, by which banger tells what they are: ELF, kernels, qcow2, ext4, stores of snapshots, what is compressed."""

from __future__ import annotations

from contextlib import suppress

from banger.images import decompress, elf, kernel
from banger.model.errors import BangerError
from banger.storage import disk_format
from fuzz.targets.peers import require

_MOST_PLAIN_BYTES = 1 << 20


def heads(data: bytes) -> None:
    """Facts, None or a BangerError; nothing is decompressed to more than was allowed."""
    found = elf.read_elf(data)
    if found is not None:
        require(bool(found.architecture), "no word for a machine")
    require(len(elf.interpreter(data)) <= 4096, "an interpreter of any length")
    require(len(elf.needed_libraries(data)) <= len(data), "more libraries than bytes")
    elf.linux_release(data)
    disk_format.read_qcow2(data)
    disk_format.read_ext4_bytes(data)
    disk_format.read_snapshot(data)
    with suppress(BangerError):
        kernel.check_kernel_head(data, "kernel")
    if kernel.is_bzimage(data):
        kernel.bzimage_release(data)
    if decompress.compression(data) == "lzo":  # a program undoes it, which is not ours
        return
    with suppress(BangerError):
        plain = decompress.decompress(data, _MOST_PLAIN_BYTES, what="it")
        require(len(plain) <= _MOST_PLAIN_BYTES, "more came out than was allowed")
    with suppress(BangerError):
        kernel.extract_vmlinux(data)
