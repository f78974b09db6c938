"""What an image build reads from the root file system's tar, without unpacking it: kernel, modules, busybox, package versions."""

from __future__ import annotations

import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from banger.images.distributions import Distribution
from banger.images.modules import plain_module, resolve_modules
from banger.images.package import Package
from banger.model.errors import HostLacksError

_VMLINUZ = re.compile(r"\./boot/vmlinuz-(.+)")
_MODULE = re.compile(r"\./(?:usr/)?lib/modules/([^/]+)/(.+)")
_BUSYBOX = ("./usr/bin/busybox.static", "./usr/bin/busybox", "./bin/busybox")


@dataclass(frozen=True, slots=True)
class RootParts:
    """``modules`` maps paths relative to the release's directory (``kernel/…ko``) to contents, for the wanted ones."""

    release: str
    vmlinuz: bytes
    busybox: bytes
    modules: dict[str, bytes]
    module_order: list[str]
    packages: list[Package]


def read_parts(path: Path, wanted_modules: list[str], wanted: Distribution) -> RootParts:
    """Read the tar twice: once for the small files, once for the modules that these turn out to need."""
    kernels: dict[str, bytes] = {}
    found: dict[str, bytes] = {}
    with tarfile.open(path) as archive:
        for member in archive:
            kernel = _VMLINUZ.fullmatch(member.name)
            small = member.name in (*_BUSYBOX, *wanted.databases) or member.name.endswith(
                ("/modules.dep", "/modules.builtin")
            )
            if member.isfile() and (kernel or small):
                data = _content(archive, member)
                if kernel:
                    kernels[kernel[1]] = data
                else:
                    found[member.name] = data
    if len(kernels) != 1:
        raise HostLacksError(
            f"the root file system has {len(kernels)} kernels, one is needed",
            detail=", ".join(kernels),
            hint="name one kernel package in the recipe",
        )
    ((release, vmlinuz),) = kernels.items()
    busybox = next((found[name] for name in _BUSYBOX if name in found), None)
    if busybox is None:
        raise HostLacksError(
            "the root file system has no busybox", hint="add busybox-static to the package list"
        )
    order = resolve_modules(
        _text(found, release, "modules.dep"),
        _text(found, release, "modules.builtin"),
        wanted_modules,
    )
    return RootParts(
        release,
        vmlinuz,
        busybox,
        _modules(path, release, order),
        order,
        wanted.packages(found),
    )


def _text(found: dict[str, bytes], release: str, name: str) -> str:
    for prefix in ("./usr/lib", "./lib"):
        data = found.get(f"{prefix}/modules/{release}/{name}")
        if data is not None:
            return data.decode()
    raise HostLacksError(
        f"the root file system has no {name} for kernel {release}",
        hint="add the package that has it to the recipe",
    )


def _modules(path: Path, release: str, order: list[str]) -> dict[str, bytes]:
    modules = {}
    with tarfile.open(path) as archive:
        for member in archive:
            match = _MODULE.fullmatch(member.name)
            if match and match[1] == release and match[2] in order and member.isfile():
                modules[match[2]] = plain_module(match[2], _content(archive, member))
    return modules


def _content(archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = archive.extractfile(member)
    return file.read() if file else b""
