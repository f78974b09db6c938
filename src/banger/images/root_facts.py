"""What an image says of the system in it: taken from the base image, or read in a root file system that was given."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from banger.api.malformed import NOT_JSON
from banger.images.distributions import every
from banger.images.ext4 import read_file
from banger.images.pack import PAYLOAD_FILE
from banger.images.package import Package
from banger.model.errors import InvalidInputError
from banger.model.manifest import (
    HTTP_PATH_PATTERN,
    PAYLOAD,
    SERVICE_PATTERN,
    ImageManifest,
    Service,
)

AGENT = "/usr/lib/banger/agent.pyz"
SERVICES = "/etc/banger/services.json"
_OS_RELEASE = ("/usr/lib/os-release", "/etc/os-release")
_FIELD = re.compile(r"""^(ID|VERSION_CODENAME|VERSION_ID)=["']?([a-z0-9][a-z0-9.+-]{0,62})["']?$""", re.MULTILINE)  # fmt: skip


@dataclass(frozen=True, slots=True)
class System:
    """``distribution`` and ``release`` are "unknown" where nothing says them."""

    distribution: str
    release: str
    services: tuple[Service, ...]
    packages: dict[str, str] = field(default_factory=dict)
    payload: int = 1


async def check_root(rootfs: Path) -> None:
    """InvalidInputError if the root file system has no agent, without which no VM of it would ever be ready."""
    if await read_file(rootfs, AGENT) is None:
        raise InvalidInputError(
            f"rootfs {rootfs} has no banger agent ({AGENT})",
            hint="give the rootfs.img of an image that banger built, as it is or changed",
        )


async def read_system(
    rootfs: Path | None, base: ImageManifest | None, services: tuple[Service, ...] | None
) -> System:
    """What a registered image says of itself, out of the given ``rootfs`` or the base image; ``services`` count before theirs."""
    if rootfs is not None:
        return await _read(rootfs, services)
    if base is None:
        raise RuntimeError("there is a rootfs or a base image")
    own = base.services if services is None else services
    return System(base.distribution, base.release, own, base.packages, base.payload)


async def _read(rootfs: Path, services: tuple[Service, ...] | None) -> System:
    text = ""
    for path in _OS_RELEASE:
        text = text or (await read_file(rootfs, path) or b"").decode(errors="replace")
    fields = dict(_FIELD.findall(text))
    return System(
        fields.get("ID", "unknown"),
        fields.get("VERSION_CODENAME") or fields.get("VERSION_ID", "unknown"),
        parse_services(await read_file(rootfs, SERVICES) or b"[]")
        if services is None
        else services,
        {package.name: package.version for package in await read_packages(rootfs)},
        parse_payload(await read_file(rootfs, f"/{PAYLOAD_FILE}") or b""),
    )


def parse_payload(text: bytes) -> int:
    """The version of banger's files in a root file system; 1, which did not say it, for what says nothing that this banger knows."""
    text = text.strip()
    return min(int(text), PAYLOAD) if text.isdigit() and len(text) < 4 and int(text) else 1


async def read_packages(rootfs: Path) -> list[Package]:
    """What is installed in the root file system, by the first distribution whose database it has; nothing if it has none."""
    for known in every():
        found = {name: await read_file(rootfs, name.removeprefix(".")) for name in known.databases}
        there = {name: data for name, data in found.items() if data is not None}
        if there:
            return known.packages(there)
    return []


def parse_services(text: bytes) -> tuple[Service, ...]:
    """The services that a root file system declares to its agent; InvalidInputError if that is malformed."""
    try:
        services = msgspec.json.decode(text, type=tuple[Service, ...])
    except NOT_JSON as error:
        raise InvalidInputError(f"{SERVICES} in the rootfs is malformed", detail=str(error), hint="name the services: --service NAME:PORT") from error  # fmt: skip
    for service in services:
        path_ok = not service.path or re.fullmatch(HTTP_PATH_PATTERN, service.path)
        name_ok = re.fullmatch(SERVICE_PATTERN, service.name)
        if not (path_ok and name_ok and 1 <= service.port <= 65535):
            raise InvalidInputError(f"{SERVICES} in the rootfs names an impossible service {service.name!r}", hint="name the services: --service NAME:PORT")  # fmt: skip
    return services
