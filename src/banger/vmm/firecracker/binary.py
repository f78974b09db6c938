"""Which Firecracker is there: its file looked at and its release asked, once for each file that comes."""

from __future__ import annotations

import os
import platform
import stat
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Final

from banger.host.exec import run_sync
from banger.model.errors import BangerError, HostLacksError
from banger.vmm.firecracker import versions
from banger.vmm.firecracker.versions import Version

STAND_IN: Final = "stand-in without KVM"
"""In the answer to ``--version``: this program plays Firecracker and needs no KVM. banger's own tests use one."""
HINT = "banger runtime fetch"
_QUERY_S = 10.0
_MACHINES: Final = {"x86_64": 62, "aarch64": 183}  # elf.h: EM_X86_64, EM_AARCH64
_HEAD: Final = struct.Struct("<4sBB10xHH")  # magic, class, byte order, type, machine
_64_BIT, _LITTLE_ENDIAN = 2, 1


@dataclass(frozen=True, slots=True)
class Binary:
    """A Firecracker that banger can use."""

    path: Path
    version: Version
    needs_kvm: bool


def inspect(path: Path) -> Binary:
    """The Firecracker at ``path``; HostLacksError says what is wrong with it. Blocks for some milliseconds when the file is new."""
    try:
        status = path.stat()
    except OSError as error:
        raise HostLacksError(
            "there is no Firecracker", detail=f"{path}: {error.strerror}", hint=HINT
        ) from error
    return _inspect(path, (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns))


@cache
def _inspect(path: Path, file: tuple[int, ...]) -> Binary:
    del file  # another file at the same path is asked anew
    _check_executable(path)
    try:
        said = run_sync([path, "--version"], timeout_s=_QUERY_S).stdout.decode(errors="replace")
    except BangerError as error:
        raise HostLacksError(
            f"{path} does not run", detail=f"{error.what}\n{error.detail}".strip(), hint=HINT
        ) from error
    version = versions.parse(said)
    if version is None or not said.startswith("Firecracker"):
        first = said.strip().partition("\n")[0]
        raise HostLacksError(
            f"{path} is no Firecracker", detail=f"it says: {first[:80]}", hint=HINT
        )
    if version < versions.OLDEST:
        raise HostLacksError(
            f"Firecracker {versions.words(version)} is too old",
            detail=f"{path}; banger needs {versions.words(versions.OLDEST)} or newer",
            hint=HINT,
        )
    return Binary(path, version, STAND_IN not in said)


def _check_executable(path: Path) -> None:
    """HostLacksError unless ``path`` is a program for this machine, or a script."""
    if not stat.S_ISREG(path.stat().st_mode) or not os.access(path, os.X_OK):
        raise HostLacksError(f"{path} is not executable", hint=f"chmod +x {path}")
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD.size)
    except OSError as error:
        raise HostLacksError(
            f"{path} cannot be read", detail=error.strerror or "", hint=f"ls -l {path}"
        ) from error
    if head.startswith(b"#!"):
        return
    machine = platform.machine()
    if len(head) < _HEAD.size or not head.startswith(b"\x7fELF"):
        raise HostLacksError(f"{path} is no program", hint=HINT)
    _, word_size, order, _, made_for = _HEAD.unpack(head)
    if (word_size, order, made_for) != (_64_BIT, _LITTLE_ENDIAN, _MACHINES.get(machine)):
        other = next((name for name, number in _MACHINES.items() if number == made_for), None)
        raise HostLacksError(
            f"{path} is not made for this machine",
            detail=f"it is for {other or f'ELF machine {made_for}'}, this is {machine}",
            hint=HINT,
        )
