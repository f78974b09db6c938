"""What banger reads of ELF files (System V ABI, "Object Files"): architecture, PVH entry, interpreter, libraries, Linux's
version. Pure.

A PVH entry is a note ``Xen`` of type 18, XEN_ELFNOTE_PHYS32_ENTRY, in a PT_NOTE segment (Linux: include/xen/interface/elfnote.h).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from mmap import mmap

MAGIC = b"\x7fELF"
X86_64 = 62  # EM_X86_64
_ARCHITECTURES = {3: "i386", 21: "ppc64", 22: "s390x", 40: "arm", X86_64: "x86_64", 183: "aarch64", 243: "riscv"}  # fmt: skip
_PT_LOAD, _PT_DYNAMIC, _PT_INTERP, _PT_NOTE = 1, 2, 3, 4
_DT_NEEDED, _DT_STRTAB = 1, 5
_MAX_HEADERS = 256
_MAX_NOTES_BYTES = 1 << 20
_XEN, _PHYS32_ENTRY = b"Xen\0", 18
_BANNER = re.compile(rb"Linux version (\d[!-~]{0,127}) \(")


@dataclass(frozen=True, slots=True)
class Elf:
    """``machine`` is e_machine, ``pvh`` whether there is a PVH entry, ``static`` whether it runs without a dynamic loader."""

    machine: int
    pvh: bool
    static: bool

    @property
    def architecture(self) -> str:
        """The name of ``machine``."""
        return _ARCHITECTURES.get(self.machine, f"machine {self.machine}")


def read_elf(data: bytes | mmap) -> Elf | None:
    """The facts of the ELF file ``data``; None if it is none, big-endian or damaged in its headers."""
    if data[:4] != MAGIC or data[4:5] not in {b"\1", b"\2"} or data[5:6] != b"\1":
        return None
    try:
        segments = list(_segments(data))
        (machine,) = struct.unpack_from("<H", data, 18)
    except (struct.error, OverflowError):  # headers that point behind the end, or far behind it
        return None
    notes = (data[at : at + min(size, _MAX_NOTES_BYTES)] for kind, at, size in segments if kind == _PT_NOTE)  # fmt: skip
    return Elf(
        machine,
        pvh=any(_has_pvh(note) for note in notes),
        static=all(kind != _PT_INTERP for kind, _, _ in segments),
    )


def _segments(data: bytes | mmap) -> Iterator[tuple[int, int, int]]:
    """p_type, p_offset and p_filesz of every program header."""
    if data[4] == 2:
        (table,) = struct.unpack_from("<Q", data, 32)
        size, count = struct.unpack_from("<HH", data, 54)
        layout, picked = struct.Struct("<IIQQQQ"), (0, 2, 5)
    else:
        (table,) = struct.unpack_from("<I", data, 28)
        size, count = struct.unpack_from("<HH", data, 42)
        layout, picked = struct.Struct("<IIIII"), (0, 1, 4)
    for number in range(min(count, _MAX_HEADERS)):
        fields = layout.unpack_from(data, table + number * size)
        kind, offset, length = (fields[index] for index in picked)
        yield kind, offset, length


def interpreter(data: bytes) -> str:
    """The dynamic loader that the ELF file ``data`` asks for; empty if it is static or no ELF."""
    if read_elf(data) is None:
        return ""
    at = next(((at, size) for kind, at, size in _segments(data) if kind == _PT_INTERP), None)
    if at is None:
        return ""
    return data[at[0] : at[0] + min(at[1], 4096)].rstrip(b"\0").decode(errors="replace")


def needed_libraries(data: bytes) -> list[str]:
    """The names of the shared libraries that the 64-bit ELF file ``data`` needs (DT_NEEDED); empty if it needs none."""
    if read_elf(data) is None or data[4] != 2:
        return []
    entry = next(((at, size) for kind, at, size in _segments(data) if kind == _PT_DYNAMIC), None)
    if entry is None:
        return []
    names, table = [], 0
    for at in range(entry[0], min(entry[0] + entry[1], len(data) - 16), 16):
        tag, value = struct.unpack_from("<qQ", data, at)
        if tag == _DT_NEEDED:
            names.append(value)
        elif tag == _DT_STRTAB:
            table = _file_offset(data, value)
    ends = [(table + name, data.find(b"\0", table + name)) for name in names]
    return [data[begin:end].decode(errors="replace") for begin, end in ends if begin < end]


def _file_offset(data: bytes, address: int) -> int:
    """Where in a 64-bit file lies what is loaded to ``address``."""
    (table,) = struct.unpack_from("<Q", data, 32)
    size, count = struct.unpack_from("<HH", data, 54)
    for number in range(min(count, _MAX_HEADERS)):
        kind, _, offset, begin, _, length = struct.unpack_from(
            "<IIQQQQ", data, table + number * size
        )
        if kind == _PT_LOAD and begin <= address < begin + length:
            return int(offset + address - begin)
    return 0


def _has_pvh(notes: bytes) -> bool:
    position = 0
    while position + 12 <= len(notes):
        name_size, data_size, kind = struct.unpack_from("<III", notes, position)
        name = notes[position + 12 : position + 12 + name_size]
        if kind == _PHYS32_ENTRY and name == _XEN:
            return True
        position += 12 + -(-name_size // 4) * 4 + -(-data_size // 4) * 4
    return False


def linux_release(data: bytes | mmap) -> str:
    """The release of the Linux kernel in the ELF file ``data``, as ``uname -r`` says it; empty if it is none."""
    found = _BANNER.search(data)
    return found[1].decode() if found else ""
