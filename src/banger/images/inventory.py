"""What is in an image, told to others: its SBOM, and how it differs from another. Made once, kept beside the image."""

from __future__ import annotations

import asyncio
from pathlib import Path

from banger.host import fs
from banger.host.threads import in_thread
from banger.images.diff import compare
from banger.images.distributions import every
from banger.images.files import files_of
from banger.images.package import Package
from banger.images.root_facts import read_packages
from banger.images.spdx import SBOM, boot_checksums, inventory
from banger.model.image_plan import ImageDiff
from banger.model.manifest import ImageManifest

_UNKNOWN = "generic"  # a package URL's type for what no distribution of ours has


def write_sbom(directory: Path, manifest: ImageManifest, packages: list[Package]) -> bytes:
    """Write the SPDX document of the image that lies, or is made, in ``directory``."""
    purl = next((one.purl for one in every() if one.name == manifest.distribution), _UNKNOWN)
    data = inventory(manifest, packages, purl, boot_checksums(directory))
    fs.write_atomic(directory / SBOM, data, mode=0o644)
    return data


async def sbom(directory: Path, manifest: ImageManifest) -> bytes:
    """The SPDX document of an image; of one that was not built, it is made now."""
    try:
        return await in_thread((directory / SBOM).read_bytes)
    except FileNotFoundError:
        packages = await read_packages(directory / "rootfs.img")
        return await in_thread(write_sbom, directory, manifest, packages)


async def diff(before: tuple[Path, ImageManifest], after: tuple[Path, ImageManifest]) -> ImageDiff:
    """What differs; the first time an image is compared its files are read, which takes seconds."""
    one = await files_of(before[0])
    other = one if before[0] == after[0] else await files_of(after[0])
    return await asyncio.to_thread(compare, before[1], after[1], (one, other))
