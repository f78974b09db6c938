"""Disks of a VM of an 8 GiB image, by every driver that works: on the file system of the temporary directory, and on one that shares blocks (an xfs in a
loop file; needs root). For dm-snapshot also what a start and a stop do: its devices are made and removed with each run (needs a device mapper; a test host
has one: scripts/testhost.sh bench/disks.py).

python bench/disks.py [RUNS]
"""

import asyncio
import contextlib
import sys
import tempfile
import time
from pathlib import Path

from common import copy_images, discard, installation, reflink_volume, report, summary

from banger.host import fs, probe
from banger.images.catalog import ImageCatalog
from banger.model.machine import StorageDriver, VmPaths
from banger.model.spec import VmSpec
from banger.storage.disks import DiskStorage


@contextlib.contextmanager
def timed(times):
    began = time.monotonic()
    yield
    times.append((time.monotonic() - began) * 1000)


async def make(boot, directory, driver, runs):
    """Milliseconds of making both disks with a driver, and of opening and closing the root disk."""
    storage, spec = DiskStorage(), VmSpec(disk_bytes=boot.manifest.disk_bytes)
    made, opened, closed, how = [], [], [], ""
    for number in range(runs):
        paths = VmPaths(directory / f"{number:012x}", directory / f"{number:012x}")
        paths.state.mkdir()
        with timed(made):
            how = await storage.create(boot, spec, paths, driver)
        if driver is StorageDriver.DM_SNAPSHOT:
            with timed(opened):
                await storage.open_root(boot, spec, paths)
            with timed(closed):
                await storage.close_root(paths)
        await storage.delete(paths)
        paths.state.rmdir()
    result = {"how": how, **summary(made)}
    return {**result, "open": summary(opened), "close": summary(closed)} if opened else result


def clone(boot, directory, runs):
    """Milliseconds of one reflink of the image's root file system."""
    times = []
    for number in range(runs):
        with timed(times):
            fs.reflink_file(boot.rootfs, directory / f"clone{number}")
        (directory / f"clone{number}").unlink()
    return summary(times)


def all_drivers(images, directory, runs):
    """What works here."""
    catalog = ImageCatalog(images, directory)
    boot = catalog.boot_stack(catalog.get("debian").id)
    result = {"image_bytes": boot.rootfs.stat().st_size, "image_allocated_bytes": fs.allocated_bytes(boot.rootfs)}  # fmt: skip
    shares, mapper = probe.reflink(directory), probe.device_mapper()
    for driver in StorageDriver:
        if (driver is StorageDriver.REFLINK and not shares) or (
            driver is StorageDriver.DM_SNAPSHOT and not mapper
        ):
            continue
        result[driver.value] = asyncio.run(make(boot, directory, driver, runs))
    if shares:
        result["reflink of the root file system"] = clone(boot, directory, max(runs, 20))
    return result


def main(runs):
    """Both file systems."""
    banger = installation()
    images = banger.state / "images"
    result = {}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-disks-") as here:
            result["plain"] = all_drivers(images, Path(here), runs)
        with reflink_volume() as volume:
            copy_images(images, volume / "images")
            result["reflink"] = all_drivers(volume / "images", volume, runs)
    finally:
        discard(banger)
    report("disks", result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
