"""Kernel modules: which ones a boot needs and in what order, from a directory or a tar, checked against the kernel they are for."""

from __future__ import annotations

import re
import sys
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from banger.host import fs
from banger.images.decompress import STREAM_ERRORS, decompress
from banger.model.errors import HostLacksError, InvalidInputError
from banger.model.units import format_size

if sys.version_info >= (3, 14):
    import tarfile
else:
    from backports.zstd import tarfile

MAX_MODULE_BYTES = 64 << 20
_COMPRESSED = (".gz", ".xz", ".zst")
_INDEX = ("modules.dep", "modules.builtin")
_PLACES = ("", "*/", "lib/modules/*/", "usr/lib/modules/*/")
_VERMAGIC = re.compile(rb"\0vermagic=([!-~]{1,128}) ")


@dataclass(frozen=True, slots=True)
class Modules:
    """The modules of an initramfs: paths relative to the release's directory to contents, in loading order."""

    release: str
    files: dict[str, bytes]


def module_name(path: str) -> str:
    """The name of the module in the file ``path``, as modprobe takes it."""
    return path.rpartition("/")[2].partition(".ko")[0].replace("-", "_")


def plain_name(path: str) -> str:
    """The file name of a module without the suffix of its compression."""
    name = path.rpartition("/")[2]
    return name.rpartition(".")[0] if name.endswith(_COMPRESSED) else name


def plain_module(path: str, data: bytes) -> bytes:
    """The content of the module file ``path``, decompressed: busybox's insmod and the kernel take no other everywhere."""
    if not path.endswith(_COMPRESSED):
        return data
    return decompress(data, MAX_MODULE_BYTES, what=f"module {path}")


def resolve_modules(dep: str, builtin: str, wanted: list[str]) -> list[str]:
    """Paths of ``wanted`` and what they depend on, in loading order (modules.dep lists the deepest dependency last)."""
    needs = _dependencies(dep)
    by_name = {module_name(path): path for path in needs}
    built_in = {module_name(line) for line in builtin.split()}
    order: list[str] = []
    for name in wanted:
        if name in built_in:
            continue
        if name not in by_name:
            raise HostLacksError(
                f"the kernel has no module {name}", hint="name modules that fit the kernel"
            )
        for path in [*reversed(needs[by_name[name]]), by_name[name]]:
            if path not in order:
                order.append(path)
    return order


def _dependencies(dep: str) -> dict[str, list[str]]:
    lines = (line.partition(":") for line in dep.splitlines())
    return {path: rest.split() for path, _, rest in lines}


def read_modules(
    source: Path,
    release: str,
    *,
    required: list[str],
    wished: list[str],
    between: fs.Between = fs.go_on,
) -> Modules:
    """The modules for a boot out of ``source``: a directory ``lib/modules/RELEASE`` or one above it, or a tar that has one.

    ``release`` is the kernel's, empty if it is not known. Every one of ``required`` must be there or built in, ``wished`` are
    taken if they are. InvalidInputError if they are not, are for another kernel, or cannot be read.
    """
    read = _read_tar if source.is_file() else _read_directory
    try:
        found = {path: data.decode() for path, data in read(source, None, between)}
        place = _choose(source, found, release)
        dep, builtin = (found.get(f"{place}{name}", "") for name in _INDEX)
        order = resolve_modules(dep, builtin, _take(dep, builtin, required, wished))
        data = dict(read(source, {f"{place}{path}" for path in order}, between))
    except (*STREAM_ERRORS, OSError, UnicodeDecodeError, tarfile.TarError) as error:
        raise InvalidInputError(
            f"modules {source} cannot be read", detail=str(error), hint=f"ls -lR {source}"
        ) from error
    files = {}
    for path in order:
        if f"{place}{path}" not in data:
            raise InvalidInputError(
                f"modules {source} lack {path}, which modules.dep lists",
                hint="depmod -b DIRECTORY RELEASE, then again",
            )
        files[path] = plain_module(path, data[f"{place}{path}"])
        _check_release(path, files[path], release)
    return Modules(release or place.rstrip("/").rpartition("/")[2], files)


def _choose(source: Path, found: dict[str, str], release: str) -> str:
    places = sorted(
        {path.rpartition("modules.dep")[0] for path in found if path.endswith(_INDEX[0])}
    )
    mine = [place for place in places if place.rstrip("/").rpartition("/")[2] == release]
    if len(places) == 1 or mine:
        return (mine or places)[0]
    if places:
        names = ", ".join(place.rstrip("/").rpartition("/")[2] for place in places)
        raise InvalidInputError(
            f"modules {source} hold several kernels' and none of {release or 'this kernel'}",
            detail=names,
            hint="give the directory of one of them",
        )
    raise InvalidInputError(
        f"modules {source} have no modules.dep",
        hint="give lib/modules/RELEASE as `make modules_install` leaves it, or: depmod -b ROOT RELEASE",
    )


def _take(dep: str, builtin: str, required: list[str], wished: list[str]) -> list[str]:
    there = {module_name(path) for path in _dependencies(dep)}
    there |= {module_name(line) for line in builtin.split()}
    missing = [name for name in required if name not in there]
    if missing:
        raise InvalidInputError(
            f"the kernel has no {' and no '.join(missing)}, neither built in nor as a module",
            hint="build it with CONFIG_VIRTIO_MMIO, CONFIG_VIRTIO_BLK and CONFIG_EXT4_FS",
        )
    return [*(name for name in wished if name in there), *required]


def _check_release(path: str, module: bytes, release: str) -> None:
    found = _VERMAGIC.search(module)
    if found and release and found[1].decode() != release:
        raise InvalidInputError(
            f"module {path} is for kernel {found[1].decode()}, the kernel is {release}",
            hint="give the modules that were built with this kernel",
        )


def _read_directory(
    source: Path, wanted: Collection[str] | None, between: fs.Between
) -> Iterator[tuple[str, bytes]]:
    """Path below ``source`` and content of each file in ``wanted`` (None: the indexes, wherever they may be)."""
    seen = set()
    if wanted is None:
        paths = [path for place in _PLACES for name in _INDEX for path in source.glob(f"{place}{name}")]  # fmt: skip
    else:
        paths = [source / path for path in wanted]
    for path in paths:
        between()
        if path.resolve() not in seen:
            seen.add(path.resolve())
            yield str(path.relative_to(source)), _read(path.open("rb"), path)


def _read_tar(
    source: Path, wanted: Collection[str] | None, between: fs.Between
) -> Iterator[tuple[str, bytes]]:
    """As `_read_directory`, out of a tar, compressed or not."""
    with tarfile.open(source) as archive:
        for member in archive:
            between()
            name = member.name.removeprefix("./")
            asked = name.rpartition("/")[2] in _INDEX if wanted is None else name in wanted
            file = archive.extractfile(member) if asked and member.isfile() else None
            if file is not None:
                yield name, _read(file, name)


def _read(file: IO[bytes], name: object) -> bytes:
    with file:
        data = file.read(MAX_MODULE_BYTES + 1)
    if len(data) > MAX_MODULE_BYTES:
        raise InvalidInputError(
            f"{name} is larger than {format_size(MAX_MODULE_BYTES)}",
            hint="name modules that fit the kernel",
        )
    return data
