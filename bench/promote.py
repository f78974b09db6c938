"""Promoting a VM whose root disk has 2 GiB of data, with its work disk, by every driver that works here; and what the disks of a new VM cost with a work seed
that is current, and with one of an older banger. No guest is booted. On the file system of the temporary directory, and on one that shares blocks (an xfs
in a loop file; needs root).

python bench/promote.py [RUNS]
"""

import asyncio
import itertools
import os
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from common import copy_images, discard, installation, reflink_volume, report, summary

from banger.host import exec as host_exec
from banger.host import fs, probe
from banger.images.catalog import ImageCatalog
from banger.images.seal import put_manifest
from banger.model.machine import StorageDriver, VmPaths
from banger.model.promotion import Promotion, PromotionSource
from banger.model.spec import VmSpec
from banger.model.units import GIB, MIB
from banger.storage.disks import DiskStorage
from banger.storage.drivers import file_of

DATA_BYTES = 2 * GIB
VM = "a" * 12


def quiet(*argv):
    subprocess.run([str(word) for word in argv], check=True, capture_output=True)


def used_root(boot, directory):
    """A root disk as a VM leaves it: the image's files and as many more as make 2 GiB, some of them deleted again."""
    raw, more = directory / "used.raw", directory / "more"
    quiet("cp", "--sparse=always", boot.rootfs, raw)
    raw.chmod(0o600)
    with more.open("wb") as file:
        for _ in range(64):
            file.write(os.urandom(MIB))
    count = (DATA_BYTES - fs.allocated_bytes(boot.rootfs)) // (64 * MIB)
    script = "".join(f"write {more} file{n}\n" for n in range(count + 4))
    script += "".join(f"rm file{n}\n" for n in range(4))
    subprocess.run(["/sbin/debugfs", "-w", "-f", "-", raw], input=script.encode(), check=True, capture_output=True)  # fmt: skip
    more.unlink()
    return raw


async def a_vm(boot, used, directory, driver):
    """The disks of a VM at rest by a driver."""
    storage, spec = DiskStorage(), VmSpec(disk_bytes=boot.manifest.disk_bytes, work_bytes=16 * GIB)
    paths = VmPaths(directory / VM, directory / VM)
    paths.state.mkdir()
    await storage.create(boot, spec, paths, driver)
    root = file_of(paths, driver)
    root.unlink()
    if driver is StorageDriver.QCOW2:
        quiet("qemu-img", "convert", "-O", "qcow2", "-F", "raw", "-B", boot.rootfs, used, root)
    else:
        fs.clone_file(used, root)
    return storage, spec, paths


def plain_copy(used, directory):
    """Milliseconds that this host needs just now to copy the data and to have the copy on its disk: what a promotion is to be compared with."""
    began = time.monotonic()
    quiet("cp", "--sparse=always", "--reflink=never", used, directory / "plain-copy")
    quiet("sync", directory / "plain-copy")
    elapsed_ms = (time.monotonic() - began) * 1000
    (directory / "plain-copy").unlink()
    return elapsed_ms


async def promote(catalog, boot, used, directory, driver, runs):
    """Milliseconds of a promotion and of its stages."""
    storage, spec, paths = await a_vm(boot, used, directory, driver)
    total, stages, sizes, copies = [], {}, [], []
    source = PromotionSource(
        VM, "box", boot.manifest.id, paths.work,
        lambda target: storage.flatten(boot, spec, paths, target), storage.flat_bytes(boot, paths),
    )  # fmt: skip
    for _ in range(runs):
        copies.append(plain_copy(used, directory))
        marks = []
        began = time.monotonic()
        wish = Promotion("bench", with_work=True, replace=True)
        made = await catalog.promote(wish, source, progress=lambda name, _, marks=marks: marks.append((name, time.monotonic())))  # fmt: skip
        total.append((time.monotonic() - began) * 1000)
        marks.append(("end", time.monotonic()))
        for (name, at), (_, behind) in itertools.pairwise(marks):
            stages[name] = stages.get(name, 0.0) + (behind - at) * 1000 / runs
        sizes.append(fs.allocated_bytes(catalog.boot_stack(made.id).rootfs))
        await catalog.delete(made.id, unused=lambda: None, progress=lambda *_: None)
    quiet("rm", "-r", paths.state)
    return {
        **summary(total),
        "cp and sync of the same data": summary(copies),
        "stages_mean": {name: round(value, 1) for name, value in stages.items()},
        "root_data_bytes": sizes[0],
    }


async def disks(catalog, manifest, directory, runs):
    """What the stage ``disks`` does with a work seed as the manifest states it; which programs the host starts for it."""
    storage, times, programs = DiskStorage(), [], []
    real = asyncio.create_subprocess_exec

    async def spy(*words, **options):
        programs.append(os.path.basename(words[0]))  # noqa: PTH119
        return await real(*words, **options)

    host_exec.asyncio.create_subprocess_exec = spy
    try:
        for number in range(runs):
            paths = VmPaths(directory / f"{number:012x}", directory / f"{number:012x}")
            paths.state.mkdir()
            programs.clear()
            began = time.monotonic()
            seed = await catalog.seed(manifest.id)
            spec = VmSpec(disk_bytes=manifest.disk_bytes, work_bytes=16 * GIB)
            await storage.create(catalog.boot_stack(manifest.id), spec, paths, StorageDriver.QCOW2)
            if not seed.current:
                await catalog.complete_home(paths.work, manifest.id)
            times.append((time.monotonic() - began) * 1000)
            quiet("rm", "-r", paths.state)
    finally:
        host_exec.asyncio.create_subprocess_exec = real
    return {**summary(times), "programs": list(programs)}


async def here(images, directory, runs):
    """What works on this file system."""
    catalog = ImageCatalog(images, directory)
    boot = catalog.boot_stack(catalog.get("debian").id)
    used, result = used_root(boot, directory), {}
    shares = probe.reflink(directory)
    for driver in (StorageDriver.QCOW2, StorageDriver.REFLINK if shares else StorageDriver.COPY):
        result[driver.value] = await promote(catalog, boot, used, directory, driver, runs)
    manifest, where = boot.manifest, boot.rootfs.parent
    result["disks, current seed"] = await disks(catalog, manifest, directory, max(runs, 7))
    put_manifest(where, replace(manifest, seed="", payload=1))
    result["disks, older seed"] = await disks(catalog, manifest, directory, max(runs, 7))
    put_manifest(where, manifest)
    return result


def main(runs):
    """Both file systems; the images are copies."""
    banger = installation()
    result = {}
    try:
        with tempfile.TemporaryDirectory(prefix="bench-promote-", dir="/var/tmp") as place:
            copy_images(banger.state / "images", Path(place) / "images")
            result["plain"] = asyncio.run(here(Path(place) / "images", Path(place), runs))
        if probe.root() and probe.loop():
            with reflink_volume() as volume:
                copy_images(banger.state / "images", volume / "images")
                result["reflink"] = asyncio.run(here(volume / "images", volume, runs))
    finally:
        discard(banger)
    report("promote", result)


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 3)
