"""The disks of VMs: root disk (`banger.storage.root`) and work disk, both made in milliseconds where blocks can be shared.

The work disk is a clone of the image's work seed (blocks shared where the file system can, else a sparse copy), grown to the asked size.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

from banger.host import fs
from banger.host.exec import find_program, run
from banger.host.threads import in_thread
from banger.host.undo import UndoStack
from banger.model.errors import HostLacksError, InvalidInputError, RefusedError
from banger.model.machine import BootStack, DiskFormat, RootDisk, VmPaths
from banger.model.spec import VmSpec
from banger.model.units import MIB, format_size
from banger.storage import root as root_disk
from banger.storage.boot_check import check_boot_files
from banger.storage.faults import clear_errors, no_space
from banger.storage.root import check_size, ext4_bytes

RESERVE_BYTES = 64 * MIB  # room that a VM's first minutes surely need
_TOOL_S = 60.0
_FSCK_S = 600.0
_FSCK_FINE = {0, 1}  # e2fsck(8): 1 is "errors corrected"


class DiskStorage:
    """See `engine.ports.Storage`."""

    async def check_image(self, boot: BootStack) -> None:
        """Every file of the image is there with the size that its manifest states, and what boots it belongs together."""
        for path in _image_files(boot):
            entry = boot.manifest.files.get(path.name)
            check_size(path, entry.size_bytes if entry else None, _rebuild(boot))
        await in_thread(check_boot_files, boot)

    async def create(self, boot: BootStack, spec: VmSpec, paths: VmPaths, root: DiskFormat) -> str:
        """Make both disks at once; a few words on how. Disks that are there already are never touched."""
        _check_asked(boot, spec)
        for path in _disks(paths):
            if path.exists():
                raise RefusedError(f"{path} is there already", hint=_delete(paths))
        async with UndoStack() as undo:
            undo.push("remove the disks", lambda: self.delete(paths))
            with clear_errors(paths.state):
                _check_space(paths.state, await in_thread(_needed_bytes, boot, paths, root))
                async with asyncio.TaskGroup() as group:
                    disk = RootDisk(root_disk.path_of(paths, root), root)
                    first = group.create_task(root_disk.make(boot, spec.disk_bytes, disk))
                    second = group.create_task(_make_work(boot, spec, paths))
            undo.release()
        return ", ".join(dict.fromkeys([*first.result().split(", "), second.result()]))

    def root(self, paths: VmPaths) -> RootDisk | None:
        """The root disk that is there; None if there is none."""
        return root_disk.find(paths)

    async def check(self, boot: BootStack, spec: VmSpec, paths: VmPaths) -> None:
        """The root disk is intact and this image's, the work disk an ext4 of the right size.

        A larger one was grown by a daemon that ended before it wrote that down: it is whole, and can be grown on.
        """
        hint = _delete(paths)
        disk = root_disk.find(paths)
        if disk is None:
            raise HostLacksError(f"{paths.overlay} is missing", hint=hint)
        if check_size(paths.work, None, hint) < spec.work_bytes:
            check_size(paths.work, spec.work_bytes, hint)
        await root_disk.check(boot, spec.disk_bytes, disk, hint)
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
    return (paths.overlay, paths.overlay_raw, paths.work)


def _image_files(boot: BootStack) -> tuple[Path, ...]:
    return (boot.kernel, boot.initramfs, boot.rootfs, boot.work_seed)


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


def _needed_bytes(boot: BootStack, paths: VmPaths, root: DiskFormat) -> int:
    """What the disks take at once: copies of the seed's data and of a raw root's, unless their blocks are shared."""
    sources = [boot.work_seed, *([boot.rootfs] if root is DiskFormat.RAW else [])]
    same = all(path.stat().st_dev == paths.state.stat().st_dev for path in sources)
    shared = same and fs.supports_reflink(paths.state)
    return RESERVE_BYTES + (0 if shared else sum(fs.allocated_bytes(path) for path in sources))


async def _make_work(boot: BootStack, spec: VmSpec, paths: VmPaths) -> str:
    how = await in_thread(fs.clone_file, boot.work_seed, paths.work)
    if spec.work_bytes > boot.work_seed.stat().st_size:
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
