"""The disks of VMs: root disk (by a driver, see `banger.storage.drivers`) and work disk, both made in milliseconds where blocks can be shared.

The work disk is a clone of the image's work seed (blocks shared where the file system can, else a sparse copy), grown to the asked size.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from banger.host import fs, probe
from banger.host.exec import find_program, run
from banger.host.threads import in_thread
from banger.host.undo import UndoStack
from banger.model.errors import HostLacksError, InvalidInputError, RefusedError
from banger.model.machine import (
    BootStack,
    DiskFormat,
    RootDisk,
    StorageChoice,
    StorageDriver,
    StoreFill,
    VmPaths,
)
from banger.model.spec import VmSpec
from banger.model.units import MIB, format_size
from banger.model.usage import DiskUsage
from banger.storage import choose, drivers, usage
from banger.storage.boot_check import check_boot_files
from banger.storage.drivers import Driver
from banger.storage.faults import clear_errors, no_space
from banger.storage.files import check_size, ext4_bytes
from banger.storage.qcow2 import Qcow2
from banger.storage.raw import Raw
from banger.storage.snapshot import DmSnapshot
from banger.storage.snapshots.port import Snapshots

RESERVE_BYTES = 64 * MIB  # room that a VM's first minutes surely need
_TOOL_S = 60.0
_FSCK_S = 600.0
_FSCK_FINE = {0, 1}  # e2fsck(8): 1 is "errors corrected"


class DiskStorage:
    """See `engine.ports.Storage`. ``wanted`` is the configured driver for new VMs, or ``auto``; ``snapshots`` makes snapshot devices."""

    def __init__(self, wanted: str = choose.AUTO, snapshots: Snapshots | None = None) -> None:
        self._wanted = wanted
        self._snapshots = DmSnapshot(snapshots)
        self._scanning = asyncio.Lock()
        self._drivers: Mapping[StorageDriver, Driver] = {
            StorageDriver.QCOW2: Qcow2(),
            StorageDriver.REFLINK: Raw(shared=True),
            StorageDriver.COPY: Raw(shared=False),
            StorageDriver.DM_SNAPSHOT: self._snapshots,
        }

    @property
    def wanted_format(self) -> DiskFormat | None:
        """The format of new root disks if a driver is configured."""
        return choose.wanted_format(self._wanted)

    async def choose(
        self, boot: BootStack, paths: VmPaths, vmm: str, formats: Sequence[DiskFormat]
    ) -> StorageChoice:
        """The driver for a new VM; RefusedError or HostLacksError if the configured one cannot work."""
        shares = await asyncio.to_thread(_shares, boot, paths)
        state_dir = paths.state.parents[1]
        facts = choose.Facts(state_dir, shares, await self._snapshots.available())
        return choose.choose(self._wanted, vmm, formats, facts)

    async def check_image(self, boot: BootStack) -> None:
        """Every file of the image is there with the size that its manifest states, and what boots it belongs together."""
        for path in _image_files(boot):
            entry = boot.manifest.files.get(path.name)
            check_size(path, entry.size_bytes if entry else None, _rebuild(boot))
        await in_thread(check_boot_files, boot)

    async def create(
        self, boot: BootStack, spec: VmSpec, paths: VmPaths, driver: StorageDriver
    ) -> str:
        """Make both disks at once; a few words on how. Disks that are there already are never touched."""
        _check_asked(boot, spec)
        for path in _disks(paths):
            if path.exists():
                raise RefusedError(f"{path} is there already", hint=_delete(paths))
        maker = self._drivers[driver]
        async with UndoStack() as undo:
            undo.push("remove the disks", lambda: self.delete(paths))
            with clear_errors(paths.state):
                needed_bytes = maker.needed_bytes(boot) + await in_thread(_work_bytes, boot, paths)
                _check_space(paths.state, RESERVE_BYTES + needed_bytes)
                async with asyncio.TaskGroup() as group:
                    group.create_task(maker.make(boot, spec.disk_bytes, paths))
                    work = group.create_task(_make_work(boot, spec, paths))
            undo.release()
        return ", ".join(dict.fromkeys([driver.value, work.result()]))

    def root(self, paths: VmPaths) -> RootDisk | None:
        """The root disk that is there; None if there is none."""
        return drivers.find_disk(paths)

    async def open_root(self, boot: BootStack, spec: VmSpec, paths: VmPaths) -> RootDisk:
        """The root disk for one run; on failure nothing is left."""
        with clear_errors(paths.state):
            return await self._driver(paths).open(boot, spec.disk_bytes, paths)

    async def close_root(self, paths: VmPaths) -> None:
        """Take back what `open_root` made; idempotent."""
        driver = drivers.find(paths)
        if driver is not None:
            with clear_errors(paths.state):
                await self._drivers[driver].close(paths)

    async def tend(self, vms: Iterable[VmPaths]) -> list[StoreFill]:
        """Look after the stores of ``vms`` that run: grow what fills up; how each is now."""
        stores = [paths for paths in vms if drivers.find(paths) is StorageDriver.DM_SNAPSHOT]
        return await self._snapshots.tend(stores) if stores else []

    async def usage(self, state_dir: Path, owners: usage.Owners) -> DiskUsage:
        """What takes how much of ``state_dir``; one scan at a time."""
        async with self._scanning:
            return await in_thread(usage.measure, state_dir, owners)

    async def devices(self, vms_dir: Path) -> frozenset[str]:
        """The VMs of ``vms_dir`` whose root disk has a device of the device mapper; none where nobody can say."""
        return await self._snapshots.devices(vms_dir)

    def missing(self, paths: VmPaths) -> Path | None:
        """The disk that is not there: the root disk as its driver calls it, or the work disk."""
        if drivers.find(paths) is None:
            return paths.overlay
        return None if paths.work.exists() else paths.work

    async def sweep(self, vms_dir: Path, running: Iterable[str]) -> list[str]:
        """Remove devices of VMs of ``vms_dir`` that do not run; sentences about it."""
        return await self._snapshots.sweep(vms_dir, frozenset(running))

    def flat_bytes(self, boot: BootStack, paths: VmPaths) -> int:
        """What `flatten` may take, roughly: the data of the image and of what the VM changed, unless their blocks can be shared."""
        own = sum(fs.allocated_bytes(path) for path in drivers.files_of_all(paths))
        if drivers.find(paths) in {StorageDriver.REFLINK, StorageDriver.COPY}:
            with clear_errors(paths.state):
                return 0 if fs.supports_reflink(paths.state) else own
        return own + fs.allocated_bytes(boot.rootfs)

    async def flatten(self, boot: BootStack, spec: VmSpec, paths: VmPaths, target: Path) -> str:
        """The root disk of a VM at rest as the new raw file ``target``, which needs no other file; a few words on how.

        What has to be opened for it is closed by `close_root`, also by the caller. On failure ``target`` may be there in part.
        """
        with clear_errors(target.parent):
            return await self._driver(paths).flatten(boot, spec.disk_bytes, paths, target)

    def _driver(self, paths: VmPaths) -> Driver:
        driver = drivers.find(paths)
        if driver is None:
            raise HostLacksError(f"{paths.overlay} is missing", hint=_delete(paths))
        return self._drivers[driver]

    async def check(self, boot: BootStack, spec: VmSpec, paths: VmPaths) -> None:
        """The root disk is intact and this image's, the work disk an ext4 of the right size.

        A larger one was grown by a daemon that ended before it wrote that down: it is whole, and can be grown on.
        """
        hint = _delete(paths)
        driver = self._driver(paths)
        if check_size(paths.work, None, hint) < spec.work_bytes:
            check_size(paths.work, spec.work_bytes, hint)
        await driver.check(boot, spec.disk_bytes, paths, hint)
        if ext4_bytes(paths.work) is None:
            raise HostLacksError(f"{paths.work} has no ext4 file system any more", hint=hint)

    async def grow_work(self, paths: VmPaths, size_bytes: int) -> None:
        """Grow the disk of a VM that does not run, and its file system; on failure the disk has its old size again."""
        old_bytes = check_size(paths.work, None, _delete(paths))
        if size_bytes < old_bytes:
            raise RefusedError(
                f"work disk {paths.work} cannot shrink",
                detail=f"it has {format_size(old_bytes)}, asked were {format_size(size_bytes)}",
                hint="make a new VM with a smaller --work-size and copy what you need",
            )
        with clear_errors(paths.state):
            await _repair(paths.work)
            try:
                await _grow(paths.work, size_bytes)
            except BaseException:
                os.truncate(paths.work, max(old_bytes, ext4_bytes(paths.work) or 0))
                raise

    async def delete(self, paths: VmPaths) -> None:
        """Remove both disks."""
        with clear_errors(paths.state):
            await asyncio.to_thread(_remove, paths)


def _remove(paths: VmPaths) -> None:
    for path in _disks(paths):
        if os.path.lexists(path):  # else a read-only file system refuses even what is not there
            path.unlink(missing_ok=True)


def _disks(paths: VmPaths) -> tuple[Path, ...]:
    return (*drivers.files_of_all(paths), paths.work)


def _image_files(boot: BootStack) -> tuple[Path, ...]:
    """All but the work seed, which can be made again: see `engine.ports.Images.seed`."""
    return (boot.kernel, boot.initramfs, boot.rootfs)


def _rebuild(boot: BootStack) -> str:
    return boot.manifest.remedy


def _delete(paths: VmPaths) -> str:
    """``paths.state`` is named by the VM's id."""
    return f"banger vm delete {paths.state.name}, and create it again"


def _check_asked(boot: BootStack, spec: VmSpec) -> None:
    for what, option, asked, file in (
        ("disk size", "--disk-size", spec.disk_bytes, boot.rootfs),
        ("work size", "--work-size", spec.work_bytes, boot.work_seed),
    ):
        least = check_size(file, None, _rebuild(boot))
        if asked < least:
            raise InvalidInputError(
                f"{what} {format_size(asked)} is below the image's {format_size(least)}",
                hint=f"choose {option} {format_size(least)} or more",
            )


def _shares(boot: BootStack, paths: VmPaths) -> probe.Answer:
    """Whether the root disk of a VM of ``paths``, whose directory need not be there yet, can share the image's blocks."""
    directory = next(path for path in (paths.state, *paths.state.parents) if path.is_dir())
    shares = probe.reflink(directory)
    if shares and boot.rootfs.stat().st_dev != directory.stat().st_dev:
        return probe.Answer(
            ok=False, why=f"{boot.rootfs} is on another file system than {directory}"
        )
    return shares


def _work_bytes(boot: BootStack, paths: VmPaths) -> int:
    """What the work disk takes at once: the seed's data, unless their blocks are shared."""
    same = boot.work_seed.stat().st_dev == paths.state.stat().st_dev
    shared = same and fs.supports_reflink(paths.state)
    return 0 if shared else fs.allocated_bytes(boot.work_seed)


async def _make_work(boot: BootStack, spec: VmSpec, paths: VmPaths) -> str:
    how = await in_thread(fs.clone_file, boot.work_seed, paths.work)
    how = StorageDriver.COPY.value if how == "sparse" else how
    if spec.work_bytes > boot.work_seed.stat().st_size:
        if boot.manifest.guest_grows_work:
            os.truncate(paths.work, spec.work_bytes)
        else:
            await _grow(paths.work, spec.work_bytes)
    return how


async def _grow(path: Path, size_bytes: int) -> None:
    os.truncate(path, size_bytes)
    await run([find_program("resize2fs", package="e2fsprogs"), str(path)], timeout_s=_TOOL_S)


async def _repair(path: Path) -> None:
    """What resize2fs demands of a file system that was mounted: its journal replayed, everything looked at."""
    tool = find_program("e2fsck", package="e2fsprogs")
    done = await run([tool, "-f", "-p", str(path)], timeout_s=_FSCK_S, check=False)
    if done.returncode not in _FSCK_FINE:
        raise HostLacksError(
            f"the file system of {path} is damaged",
            detail=(done.stdout + done.stderr).decode(errors="replace")[-2000:].strip(),
            hint=f"e2fsck -f {path}",
        )


def _check_space(directory: Path, needed_bytes: int) -> None:
    free = fs.free_bytes(directory)
    if free < needed_bytes:
        raise no_space(
            directory, f"{format_size(free)} are free, {format_size(needed_bytes)} are needed"
        )
