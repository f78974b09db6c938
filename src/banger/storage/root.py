"""Root disks, in two forms: an empty qcow2 over the image's raw rootfs, or a raw copy of it.

A qcow2 is made in milliseconds whatever its size, but only QEMU reads it. A raw copy runs on any VMM; it costs nothing where the file system
shares blocks, else the time and room of the image's data.
"""

from __future__ import annotations

import os
from pathlib import Path

from banger.host import fs
from banger.host.exec import find_program, run
from banger.host.threads import in_thread
from banger.model.errors import HostLacksError
from banger.model.machine import BootStack, DiskFormat, RootDisk, VmPaths
from banger.model.units import format_size
from banger.storage import disk_format

_TOOL_S = 60.0
_QCOW2_FINE = {0, 3}  # qemu-img(1): 3 is "leaked clusters", which cost space and nothing else


def path_of(paths: VmPaths, root: DiskFormat) -> Path:
    """Where a root disk of this format lies."""
    return paths.overlay if root is DiskFormat.QCOW2 else paths.overlay_raw


def find(paths: VmPaths) -> RootDisk | None:
    """The root disk that is there; None if there is none."""
    for root in DiskFormat:
        if path_of(paths, root).exists():
            return RootDisk(path_of(paths, root), root)
    return None


async def make(boot: BootStack, size_bytes: int, disk: RootDisk) -> str:
    """Make ``disk`` with ``size_bytes``; a few words on how."""
    if disk.format is DiskFormat.RAW:
        how = await in_thread(fs.clone_file, boot.rootfs, disk.path)
        os.truncate(disk.path, size_bytes)  # the guest grows its file system when it boots
        return f"raw, {how}"
    os.close(os.open(disk.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    tool = find_program("qemu-img", package="qemu-utils")
    argv = [tool, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(boot.rootfs)]
    await run([*argv, str(disk.path), str(size_bytes)], timeout_s=_TOOL_S)
    return "qcow2"


async def check(boot: BootStack, size_bytes: int, disk: RootDisk, hint: str) -> None:
    """HostLacksError with ``hint`` unless ``disk`` is whole and has ``size_bytes``."""
    if disk.format is DiskFormat.RAW:
        _check_raw(disk.path, size_bytes, hint)
    else:
        _check_head(disk.path, boot.rootfs, size_bytes, hint)
        await _check_clusters(disk.path, hint)


def _check_raw(path: Path, size_bytes: int, hint: str) -> None:
    check_size(path, size_bytes, hint)
    if ext4_bytes(path) is None:
        raise HostLacksError(f"{path} has no ext4 file system any more", hint=hint)


def _check_head(path: Path, rootfs: Path, size_bytes: int, hint: str) -> None:
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


async def _check_clusters(path: Path, hint: str) -> None:
    tool = find_program("qemu-img", package="qemu-utils")
    argv = [tool, "check", "-q", "-f", "qcow2", str(path)]
    done = await run(argv, timeout_s=_TOOL_S, check=False)
    if done.returncode not in _QCOW2_FINE:
        detail = (done.stdout + done.stderr).decode(errors="replace")[-1000:]
        raise HostLacksError(f"{path} is damaged", detail=detail.strip(), hint=hint)


def ext4_bytes(path: Path) -> int | None:
    """The size that the ext4 in ``path`` says it has; None if there is none."""
    with path.open("rb") as file:
        return disk_format.read_ext4_bytes(file.read(disk_format.EXT4_HEAD_BYTES))


def check_size(path: Path, size_bytes: int | None, hint: str) -> int:
    """The size of ``path``, which must be there and, if given, have ``size_bytes``; else HostLacksError with ``hint``."""
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
