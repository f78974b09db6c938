"""A Python for the agent in a root that has none: that of another image, with its loader and libraries, in a directory of its own.

The program is started by its own dynamic loader, so that it minds neither which C library the root has nor whether it has one.
"""

from __future__ import annotations

import io
import re
import tarfile
from pathlib import Path
from typing import Final

from banger.images.dump import dump_tar
from banger.images.elf import interpreter, needed_libraries
from banger.images.ext4 import read_file, resolve
from banger.model.errors import HostLacksError

HOME: Final = "usr/lib/banger/python"
COMMAND: Final = (
    f"/{HOME}/lib/ld.so",
    "--library-path",
    f"/{HOME}/lib",
    f"/{HOME}/bin/python3",
)
OLDEST: Final = (3, 9)
_NAME = re.compile(r"python3\.(\d{1,3})")
_LIBRARY_DIRS: Final = (
    "/usr/lib/x86_64-linux-gnu", "/lib/x86_64-linux-gnu", "/usr/lib64", "/lib64", "/usr/lib", "/lib",
)  # fmt: skip
_MAX_LIBRARIES: Final = 40


def is_new_enough(program: str) -> bool:
    """Whether the agent runs with the Python whose program has this name (python3.11)."""
    found = _NAME.fullmatch(program.rpartition("/")[2])
    return found is not None and (3, int(found[1])) >= OLDEST


async def take_python(image: Path, name: str, work: Path, epoch_s: int) -> list[Path]:
    """Tars with the Python of the root file system ``image`` of the image ``name``, to be put over a root; HostLacksError if it has none."""
    program = await resolve(image, "/usr/bin/python3")
    data = await read_file(image, program) if program is not None else None
    if program is None or data is None or not is_new_enough(program):
        raise HostLacksError(
            f"image {name} has no Python for the agent either",
            detail="the root file system that was given has none at /usr/bin/python3",
            hint="give an image that banger built: --kernel-from debian",
        )
    files = {"bin/python3": data, "lib/ld.so": await _library(image, interpreter(data), name)}
    todo = needed_libraries(data)
    while todo and len(files) < _MAX_LIBRARIES:
        library = todo.pop()
        if f"lib/{library}" not in files:
            files[f"lib/{library}"] = await _library(image, library, name)
            todo += needed_libraries(files[f"lib/{library}"])
    programs, modules = work / "python.tar", work / "python-lib.tar"
    programs.write_bytes(_tar(files, epoch_s))
    version = program.rpartition("/")[2]
    await dump_tar(image, {f"/usr/lib/{version}": f"{HOME}/lib"}, modules, work)
    return [programs, modules]


async def _library(image: Path, name: str, of: str) -> bytes:
    places = [name] if name.startswith("/") else [f"{place}/{name}" for place in _LIBRARY_DIRS]
    for place in places:
        path = await resolve(image, place)
        data = await read_file(image, path) if path is not None else None
        if data is not None:
            return data
    raise HostLacksError(
        f"the Python of image {of} needs {name}, which is not there",
        hint=f"banger image build {of} --force",
    )


def _tar(files: dict[str, bytes], epoch_s: int) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, data in sorted(files.items()):
            info = tarfile.TarInfo(f"{HOME}/{name}")
            info.size, info.mtime, info.mode = len(data), epoch_s, 0o755
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()
