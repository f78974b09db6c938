"""Disks as qcow2 overlay and raw work disk. Both are made in milliseconds, whatever their size.

The overlay is an empty qcow2 whose backing file is the image's raw rootfs. The work disk is a clone of the image's work seed
(blocks shared where the file system can, else a sparse copy), grown to the asked size.
"""

from __future__ import annotations

import asyncio
import errno
import os
import struct
from pathlib import Path

from banger.host import fs
from banger.host.exec import find_program, run
from banger.model.errors import CommandFailedError, HostLacksError, InvalidInputError, RefusedError
from banger.model.machine import BootStack, VmPaths
from banger.model.spec import VmSpec
from banger.model.units import MIB, format_size

RESERVE_BYTES = 64 * MIB  # room that a VM's first minutes surely need
_TOOL_S = 60.0
_QCOW2_MAGIC = 0x514649FB  # docs/interop/qcow2.txt of QEMU, as are the header's fields
_HEADER = struct.Struct(
    ">IIQIIQ"
)  # magic, version, backing name offset, its length, cluster bits, virtual size
_EXT4_SUPERBLOCK, _EXT4_MAGIC = 1024, 0xEF53  # ext4's superblock lies at byte 1024; magic at 0x38


class QcowStorage:
    """See `engine.ports.Storage`."""

    async def check_image(self, boot: BootStack) -> None:
        """Every file of the image is there with the size that its manifest states."""
        for path in (boot.kernel, boot.initramfs, boot.rootfs, boot.work_seed):
            entry = boot.manifest.files.get(path.name)
            _check_size(
                path,
                entry.size_bytes if entry else None,
                f"banger image build {boot.manifest.name} --force",
            )

    async def create(self, boot: BootStack, spec: VmSpec, paths: VmPaths) -> str:
        """Make both disks at once."""
        self._check_sizes(boot, spec)
        _check_space(paths.state, fs.allocated_bytes(boot.work_seed) + RESERVE_BYTES)
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._make_overlay(boot, spec, paths))
                how = group.create_task(self._make_work(boot, spec, paths))
        except BaseExceptionGroup as errors:
            await self.delete(paths)
            raise _clear(errors.exceptions[0], paths) from errors
        return f"qcow2, {how.result()}"

    def _check_sizes(self, boot: BootStack, spec: VmSpec) -> None:
        for what, option, asked, least in (
            ("disk size", "--disk-size", spec.disk_bytes, boot.rootfs.stat().st_size),
            ("work size", "--work-size", spec.work_bytes, boot.work_seed.stat().st_size),
        ):
            if asked < least:
                raise InvalidInputError(
                    f"{what} {format_size(asked)} is below the image's {format_size(least)}",
                    hint=f"choose {option} {format_size(least)} or more",
                )

    async def _make_overlay(self, boot: BootStack, spec: VmSpec, paths: VmPaths) -> None:
        tool = find_program("qemu-img", package="qemu-utils")
        argv = [tool, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(boot.rootfs)]
        await run([*argv, str(paths.overlay), str(spec.disk_bytes)], timeout_s=_TOOL_S)
        paths.overlay.chmod(0o600)

    async def _make_work(self, boot: BootStack, spec: VmSpec, paths: VmPaths) -> str:
        how = await asyncio.to_thread(fs.clone_file, boot.work_seed, paths.work)
        if spec.work_bytes > boot.work_seed.stat().st_size:
            await _grow(paths.work, spec.work_bytes)
        return how

    async def check(self, boot: BootStack, spec: VmSpec, paths: VmPaths) -> None:
        """The overlay is a qcow2 over this image, the work disk an ext4 of the right size."""
        delete = "the disk is lost; banger vm delete, and create it again"
        _check_size(paths.overlay, None, delete)
        _check_size(paths.work, spec.work_bytes, delete)
        _check_overlay(paths.overlay, boot.rootfs, spec.disk_bytes)
        with paths.work.open("rb") as file:
            file.seek(_EXT4_SUPERBLOCK + 0x38)
            if int.from_bytes(file.read(2), "little") != _EXT4_MAGIC:
                raise HostLacksError(f"{paths.work} has no ext4 file system any more", hint=delete)

    async def grow_work(self, paths: VmPaths, size_bytes: int) -> None:
        """Grow disk and file system; on failure the disk has its old size again."""
        old_bytes = paths.work.stat().st_size
        if size_bytes < old_bytes:
            raise RefusedError(
                f"work disk {paths.work} cannot shrink", detail=f"it has {format_size(old_bytes)}"
            )
        checker = find_program("e2fsck", package="e2fsprogs")
        done = await run([checker, "-f", "-p", str(paths.work)], timeout_s=600, check=False)
        if done.returncode not in {0, 1}:  # e2fsck(8): 1 is "errors corrected"
            raise HostLacksError(
                f"{paths.work} is damaged", detail=done.stdout.decode(errors="replace")[-2000:]
            )
        try:
            await _grow(paths.work, size_bytes)
        except BaseException:
            os.truncate(paths.work, max(old_bytes, _ext4_bytes(paths.work)))
            raise

    async def delete(self, paths: VmPaths) -> None:
        """Remove both disks."""
        for path in (paths.overlay, paths.work):
            path.unlink(missing_ok=True)


async def _grow(path: Path, size_bytes: int) -> None:
    os.truncate(path, size_bytes)
    await run([find_program("resize2fs", package="e2fsprogs"), str(path)], timeout_s=_TOOL_S)


def _ext4_bytes(path: Path) -> int:
    """Size of the ext4 in ``path`` by its superblock: block count at 0x4, log2 of the block size less 10 at 0x18."""
    with path.open("rb") as file:
        file.seek(_EXT4_SUPERBLOCK)
        block = file.read(256)
    low, log = struct.unpack_from("<I", block, 0x4)[0], struct.unpack_from("<I", block, 0x18)[0]
    high = struct.unpack_from("<I", block, 0x150)[0] if len(block) > 0x154 else 0
    return int((high << 32 | low) << (10 + log))


def _check_size(path: Path, size_bytes: int | None, hint: str) -> None:
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


def _check_overlay(path: Path, rootfs: Path, size_bytes: int) -> None:
    with path.open("rb") as file:
        header = file.read(_HEADER.size)
        if len(header) == _HEADER.size:
            magic, _, offset, length, _, virtual = _HEADER.unpack(header)
            file.seek(offset)
            backing = file.read(length) if 0 < length < 1024 else b""
            if magic == _QCOW2_MAGIC and virtual == size_bytes and backing == os.fsencode(rootfs):
                return
    raise HostLacksError(
        f"{path} is damaged: no qcow2 of {format_size(size_bytes)} over {rootfs}",
        hint="the VM's disk is lost; delete the VM and create it again",
    )


def _check_space(directory: Path, needed_bytes: int) -> None:
    free = fs.free_bytes(directory)
    if free < needed_bytes:
        raise _no_space(
            directory, f"{format_size(free)} are free, {format_size(needed_bytes)} are needed"
        )


def _no_space(directory: Path, detail: str) -> HostLacksError:
    return HostLacksError(
        f"no space for a VM's disks on {directory}",
        detail=detail,
        hint="banger vm list, and delete what you do not need",
    )


def _clear(error: BaseException, paths: VmPaths) -> BaseException:
    """The plainest error for what went wrong."""
    if isinstance(error, OSError):
        if error.errno == errno.ENOSPC:
            return _no_space(paths.state, str(error))
        return HostLacksError(f"cannot make disks in {paths.state}", detail=str(error))
    if isinstance(error, CommandFailedError) and "No space left" in error.detail:
        return _no_space(paths.state, error.detail)
    return error
