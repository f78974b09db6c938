"""Overlay and work disk of an 8 GiB image, on a file system with reflink (an xfs in a loop file; needs root) and on the one of the temporary directory.

python bench/disks.py [RUNS]
"""

import asyncio
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import installation, report, summary

from banger.images.catalog import ImageCatalog
from banger.model.machine import DiskFormat, VmPaths
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
        how = await DiskStorage().create(boot, VmSpec(), paths, DiskFormat.QCOW2)
        times.append((time.monotonic() - began) * 1000)
        await DiskStorage().delete(paths)
    return {"how": how, **summary(times)}


def main(runs):
    """Both file systems."""
    banger = installation()
    images = banger.state / "images"
    here = Path(tempfile.mkdtemp(prefix="bench-disks-"))
    result = {"plain": asyncio.run(make(images, here, runs))}
    disk, mount = here / "xfs.img", here / "xfs"
    with disk.open("wb") as file:
        file.truncate(12 << 30)
    subprocess.run(["mkfs.xfs", "-q", "-m", "reflink=1", str(disk)], check=True)
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop", str(disk), str(mount)], check=True)
    try:
        subprocess.run(
            ["cp", "-a", "--sparse=always", f"{images}/.", str(mount / "images")], check=True
        )
        result["reflink"] = asyncio.run(make(mount / "images", mount, runs))
    finally:
        subprocess.run(["umount", str(mount)], check=True)
        subprocess.run(["rm", "-rf", str(here)], check=True)
        banger.close()
    report("disks", result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 7)
