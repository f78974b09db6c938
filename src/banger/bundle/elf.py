"""What a program file is, from its first bytes."""

from __future__ import annotations

import platform
import struct

HEADER_BYTES = 20
_MACHINES = {
    62: "x86_64",
    183: "aarch64",
    3: "i386",
    40: "arm",
    243: "riscv64",
}  # e_machine, elf(5)


def host_architecture() -> str:
    """This machine's, as uname has it: ``x86_64``."""
    return platform.machine()


def why_not_runnable(head: bytes, architecture: str) -> str:
    """Why the file that begins with ``head`` is no program for ``architecture``; empty if it is one, or a script."""
    if head.startswith(b"#!"):
        return ""
    if len(head) < HEADER_BYTES or not head.startswith(b"\x7fELF"):
        return "it is no program (neither ELF nor a script)"
    # elf(5): EI_CLASS 1 is 32 and 2 is 64 bits, EI_DATA 1 is little-endian, e_machine is at 18.
    little = head[5] == 1
    (number,) = struct.unpack_from("<H" if little else ">H", head, 18)
    found = _MACHINES.get(number, f"machine {number}")
    bits = "" if head[4] == 2 else ", 32-bit"
    if found != architecture or bits or not little:
        return f"it is a program for {found}{bits}, this is {architecture}"
    return ""
