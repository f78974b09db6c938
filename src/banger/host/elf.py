"""What a program needs in order to start: itself, the loader that the kernel runs for it, and the libraries that the loader finds.

Asked of the loader itself, which knows its search paths; `ELF <https://refspecs.linuxfoundation.org/elf/gabi4+/ch5.pheader.html>`_ names it.
"""

from __future__ import annotations

import re
import struct
from functools import lru_cache
from pathlib import Path

from banger.host.exec import run_sync
from banger.model.errors import HostLacksError

LOADER_CACHE = Path("/etc/ld.so.cache")
_PT_INTERP = 3
_MAX_PATH_BYTES = 4096
_LIST_S = 20.0
_LIBRARY = re.compile(r"(?:=>\s+|^\s*)(/\S+) \(0x[0-9a-f]+\)\s*$", re.MULTILINE)


def needed(program: Path, *modules: Path) -> tuple[str, ...]:
    """Absolute paths, as they are opened: ``program``, its loader, its libraries and those of the ``modules`` that it loads, and these.

    Only itself if it is static. HostLacksError if it is no 64-bit ELF file, CommandFailedError if a library is missing. The loader is
    asked again when a file or its cache has changed.
    """
    try:
        changed = tuple(path.stat().st_mtime_ns for path in (program, *modules))
    except OSError as error:
        raise HostLacksError(
            f"{program} cannot be read", detail=error.strerror or "", hint=f"ls -l {program}"
        ) from error
    cached = LOADER_CACHE.stat().st_mtime_ns if LOADER_CACHE.exists() else 0
    return _needed((program, *modules), changed, cached)


@lru_cache(maxsize=64)
def _needed(files: tuple[Path, ...], _changed: tuple[int, ...], _cached: int) -> tuple[str, ...]:
    loader = interpreter(files[0])
    if loader is None:
        return (str(files[0]),)
    found = [str(files[0]), loader]
    for path in files:
        listed = run_sync([loader, "--list", path], timeout_s=_LIST_S).stdout
        found += _LIBRARY.findall(listed.decode(errors="replace"))
    return tuple(dict.fromkeys([*found, *map(str, files[1:])]))


def interpreter(program: Path) -> str | None:
    """The loader that an ELF file names in PT_INTERP; None if it names none. HostLacksError if it is no 64-bit ELF file."""
    with program.open("rb") as file:
        ident = file.read(64)
        if ident[:5] != b"\x7fELF\x02" or len(ident) < 64:
            raise HostLacksError(
                f"{program} is no 64-bit ELF program",
                detail="a script in a program's place cannot be confined",
                hint="name the program itself, or set confine to off",
            )
        order = "<" if ident[5] == 1 else ">"
        (table,) = struct.unpack_from(f"{order}Q", ident, 32)
        size, count = struct.unpack_from(f"{order}HH", ident, 54)
        file.seek(table)
        headers = file.read(size * count)
        for start in range(0, len(headers) - 39, max(size, 1)):
            kind, _, offset, _, _, length = struct.unpack_from(f"{order}IIQQQQ", headers, start)
            if kind == _PT_INTERP:
                file.seek(offset)
                return file.read(min(length, _MAX_PATH_BYTES)).rstrip(b"\0").decode()
    return None
