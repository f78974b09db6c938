"""Disks as qcow2 overlay and raw work disk. Both are made in milliseconds, whatever their size.

The overlay is an empty qcow2 whose backing file is the image's raw rootfs. The work disk is a clone of the image's work seed
(blocks shared where the file system can, else a sparse copy), grown to the asked size.
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
from banger.model.machine import BootStack, VmPaths
from banger.model.spec import VmSpec
from banger.model.units import MIB, format_size
from banger.storage import disk_format
from banger.storage.boot_check import check_boot_files
from banger.storage.faults import clear_errors, no_space

RESERVE_BYTES = 64 * MIB  # room that a VM's first minutes surely need
_TOOL_S = 60.0
_FSCK_S = 600.0
_FSCK_FINE = {0, 1}  # e2fsck(8): 1 is "errors corrected"
_QCOW2_FINE = {0, 3}  # qemu-img(1): 3 is "leaked clusters", which cost space and nothing else


class QcowStorage:
    """See `engine.ports.Storage`."""

    async def check_image(self, boot: BootStack) -> None:
        """Every file of the image is there with the size that its manifest states, and what boots it belongs together."""
        for path in _image_files(boot):
            entry = boot.manifest.files.get(path.name)
            _check_size(path, entry.size_bytes if entry else None, _rebuild(boot))
        await in_thread(check_boot_files, boot)

    async def verify_image(self, boot: BootStack) -> None:
        """As `check_image`, and every byte is as it was built: reads all of it, seconds an image."""
        await self.check_image(boot)
        for path in _image_files(boot):
            entry = boot.manifest.files.get(path.name)
            if entry and await asyncio.to_thread(fs.sparse_digest, path) != entry.digest:
                raise HostLacksError(
                    f"{path} is not what was built",
                    detail="its digest differs from the manifest's",
                    hint=_rebuild(boot),
                )

    async def create(self, boot: BootStack, spec: VmSpec, paths: VmPaths) -> str:
        """Make both disks at once; a few words on how. Disks that are there already are never touched."""
        _check_asked(boot, spec)
        for path in (paths.overlay, paths.work):
            if path.exists():
                raise RefusedError(f"{path} is there already", hint=_delete(paths))
        async with UndoStack() as undo:
            undo.push("remove the disks", lambda: self.delete(paths))
            with clear_errors(paths.state):
                _check_space(paths.state, await in_thread(_needed_bytes, boot, paths))
                async with asyncio.TaskGroup() as group:
                    group.create_task(_make_overlay(boot, spec, paths))
                    how = group.create_task(_make_work(boot, spec, paths))
            undo.release()
        return f"qcow2, {how.result()}"

    async def check(self, boot: BootStack, spec: VmSpec, paths: VmPaths) -> None:
        """The overlay is an intact qcow2 over this image, the work disk an ext4 of the right size."""
        hint = _delete(paths)
        _check_size(paths.overlay, None, hint)
        _check_size(paths.work, spec.work_bytes, hint)
        _check_overlay(paths.overlay, boot.rootfs, spec.disk_bytes, hint)
        if _ext4_bytes(paths.work) is None:
            raise HostLacksError(f"{paths.work} has no ext4 file system any more", hint=hint)
        tool = find_program("qemu-img", package="qemu-utils")
        done = await run(
            [tool, "check", "-q", "-f", "qcow2", str(paths.overlay)],
            timeout_s=_TOOL_S,
            check=False,
        )
        if done.returncode not in _QCOW2_FINE:
            detail = (done.stdout + done.stderr).decode(errors="replace")[-1000:]
            raise HostLacksError(f"{paths.overlay} is damaged", detail=detail.strip(), hint=hint)

    async def grow_work(self, paths: VmPaths, size_bytes: int) -> None:
        """Grow the disk of a VM that does not run, and its file system; on failure the disk has its old size again."""
        old_bytes = _check_size(paths.work, None, _delete(paths))
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
                os.truncate(paths.work, max(old_bytes, _ext4_bytes(paths.work) or 0))
                raise

    async def delete(self, paths: VmPaths) -> None:
        """Remove both disks."""
        with clear_errors(paths.state):
            await asyncio.to_thread(_remove, paths)


def _remove(paths: VmPaths) -> None:
    for path in (paths.overlay, paths.work):
        if os.path.lexists(path):  # else a read-only file system refuses even what is not there
            path.unlink(missing_ok=True)


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
        least = _check_size(file, None, _rebuild(boot))
        if asked < least:
            raise InvalidInputError(
                f"{what} {format_size(asked)} is below the image's {format_size(least)}",
                hint=f"choose {option} {format_size(least)} or more",
            )


def _needed_bytes(boot: BootStack, paths: VmPaths) -> int:
    """What the disks take at once: a copy of the seed's data, unless its blocks are shared."""
    same = boot.work_seed.stat().st_dev == paths.state.stat().st_dev
    shared = same and fs.supports_reflink(paths.state)
    return RESERVE_BYTES + (0 if shared else fs.allocated_bytes(boot.work_seed))


async def _make_overlay(boot: BootStack, spec: VmSpec, paths: VmPaths) -> None:
    os.close(os.open(paths.overlay, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    tool = find_program("qemu-img", package="qemu-utils")
    argv = [tool, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(boot.rootfs)]
    await run([*argv, str(paths.overlay), str(spec.disk_bytes)], timeout_s=_TOOL_S)


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


def _ext4_bytes(path: Path) -> int | None:
    with path.open("rb") as file:
        return disk_format.read_ext4_bytes(file.read(disk_format.EXT4_HEAD_BYTES))


def _check_size(path: Path, size_bytes: int | None, hint: str) -> int:
    """The size of ``path``, which must be there and, if given, have ``size_bytes``."""
    try:
        real = path.stat().st_size
    except FileNotFoundError:
        raise HostLacksError(f"{path} is missing", hint=hint) from None
    if size_bytes is not None and real != size_bytes:
        raise HostLacksError(
            f"{path} has the wrong size",
            detail=f"it has {real} bytes, {size_bytes} were expected",
            hint=hint,
        )
    return real


def _check_overlay(path: Path, rootfs: Path, size_bytes: int, hint: str) -> None:
    with path.open("rb") as file:
        head = disk_format.read_qcow2(file.read(disk_format.QCOW2_HEAD_BYTES))
    if head is None or head.corrupt:
        raise HostLacksError(f"{path} is damaged: no qcow2 any more", hint=hint)
    wanted = disk_format.Qcow2Head(size_bytes, os.fsencode(rootfs), corrupt=False)
    if head != wanted:
        raise HostLacksError(
            f"{path} is not this VM's disk",
            detail=f"it has {format_size(head.size_bytes)} over {os.fsdecode(head.backing) or 'nothing'}; "
            f"expected were {format_size(size_bytes)} over {rootfs}",
            hint=hint,
        )


def _check_space(directory: Path, needed_bytes: int) -> None:
    free = fs.free_bytes(directory)
    if free < needed_bytes:
        raise no_space(
            directory, f"{format_size(free)} are free, {format_size(needed_bytes)} are needed"
        )
