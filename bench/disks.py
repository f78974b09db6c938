"""Overlay and work disk of an 8 GiB image, on a file system with reflink (an xfs in a loop file; needs root) and on the one of the temporary directory.

python bench/disks.py [RUNS]
"""

import asyncio
import sys
import tempfile
import time
from pathlib import Path

from common import copy_images, installation, reflink_volume, report, summary

from banger.images.catalog import ImageCatalog
from banger.model.machine import StorageDriver, VmPaths
from banger.model.spec import VmSpec
from banger.storage.disks import DiskStorage


async def make(images, directory, runs):
    """Milliseconds of both disks, and how the work disk was cloned."""
    catalog = ImageCatalog(images, directory)
    boot = catalog.boot_stack(catalog.get("debian").id)
    times, how = [], ""
    for number in range(runs):
        paths = VmPaths(directory / f"vm{number}", directory / f"vm{number}")
        paths.state.mkdir()
        began = time.monotonic()
        how = await DiskStorage().create(boot, VmSpec(), paths, StorageDriver.QCOW2)
        times.append((time.monotonic() - began) * 1000)
        await DiskStorage().delete(paths)
    return {"how": how, **summary(times)}


def main(runs):
    """Both file systems."""
    banger = installation()
    images = banger.state / "images"
    result = {}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-disks-") as here:
            result["plain"] = asyncio.run(make(images, Path(here), runs))
        with reflink_volume() as volume:
            copy_images(images, volume / "images")
            result["reflink"] = asyncio.run(make(volume / "images", volume, runs))
    finally:
        banger.close()
    report("disks", result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
