"""Which files of its installation QEMU opens when it starts a microvm: asked of QEMU and of the loader."""

from __future__ import annotations

import os
from functools import lru_cache
from pathlib import Path

from banger.host import elf
from banger.host.exec import run_sync
from banger.vmm.confinement import ProgramFiles

_QUERY_S = 20.0


def program_files(program: str) -> ProgramFiles:
    """Program, libraries, the accelerators that distributions keep in modules, and the directories of firmware.

    Takes about 100 ms the first time; BangerError if there is no such program, or it is a script.
    """
    path = Path(program)
    first = elf.needed(path)
    folders = {Path(os.path.realpath(library)).parent / "qemu" for library in first}
    modules = sorted(m for folder in folders for m in folder.glob("accel-*.so"))
    code = elf.needed(path, *modules)
    cache = [str(elf.LOADER_CACHE)] if len(code) > 1 and elf.LOADER_CACHE.exists() else []
    return ProgramFiles(code, (*_firmware(program, path.stat().st_mtime_ns), *cache))


@lru_cache(maxsize=4)
def _firmware(program: str, _changed: int) -> tuple[str, ...]:
    """Directories that QEMU searches (``-L help``), such as /usr/bin/../share/qemu, made plain."""
    listed = run_sync([program, "-L", "help"], timeout_s=_QUERY_S).stdout.decode(errors="replace")
    found = [os.path.normpath(line) for line in listed.splitlines() if line.startswith("/")]
    return tuple(path for path in dict.fromkeys(found) if Path(path).is_dir())
