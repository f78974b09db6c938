"""The driver ``qcow2``: an empty qcow2 over the image's raw rootfs. Made in milliseconds whatever its size, on any file system; only QEMU reads it."""

from __future__ import annotations

import os
from pathlib import Path

from banger.host.exec import find_program, run
from banger.model.errors import HostLacksError
from banger.model.machine import BootStack, DiskFormat, RootDisk, VmPaths
from banger.model.units import format_size
from banger.storage import disk_format

_TOOL_S = 60.0
_CONVERT_S = 1800.0
_FINE = {0, 3}  # qemu-img(1): 3 is "leaked clusters", which cost space and nothing else


class Qcow2:
    """See `banger.storage.drivers.Driver`."""

    async def make(self, boot: BootStack, size_bytes: int, paths: VmPaths) -> None:
        """By qemu-img."""
        path = paths.overlay
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        tool = find_program("qemu-img", package="qemu-utils")
        argv = [tool, "create", "-q", "-f", "qcow2", "-F", "raw", "-b", str(boot.rootfs)]
        await run([*argv, str(path), str(size_bytes)], timeout_s=_TOOL_S)

    async def check(self, boot: BootStack, size_bytes: int, paths: VmPaths, hint: str) -> None:
        """Its header, then its tables by qemu-img."""
        _check_head(paths.overlay, boot.rootfs, size_bytes, hint)
        await _check_clusters(paths.overlay, hint)

    async def open(self, boot: BootStack, size_bytes: int, paths: VmPaths) -> RootDisk:
        """QEMU opens the file itself."""
        del boot, size_bytes
        return RootDisk(paths.overlay, DiskFormat.QCOW2)

    async def close(self, paths: VmPaths) -> None:
        """There is nothing but the file."""

    async def flatten(self, boot: BootStack, size_bytes: int, paths: VmPaths, target: Path) -> str:
        """By qemu-img, which leaves out zeros, and dies with the daemon."""
        _check_head(paths.overlay, boot.rootfs, size_bytes, f"banger vm start {paths.state.name}")
        tool = find_program("qemu-img", package="qemu-utils")
        setpriv = find_program("setpriv", package="util-linux")
        argv = [
            setpriv,
            "--pdeathsig",
            "KILL",
            tool,
            "convert",
            "-q",
            "-f",
            "qcow2",
            "-O",
            "raw",
            str(paths.overlay),
            str(target),
        ]
        await run(argv, timeout_s=_CONVERT_S)
        return "qemu-img convert"

    def needed_bytes(self, boot: BootStack) -> int:
        """Next to nothing."""
        del boot
        return 0


def _check_head(path: Path, rootfs: Path, size_bytes: int, hint: str) -> None:
    with path.open("rb") as file:
        head = disk_format.read_qcow2(file.read(disk_format.QCOW2_HEAD_BYTES))
    if head is not None and head.foreign:
        raise HostLacksError(
            f"{path} is not this VM's disk",
            detail="its header asks for features that banger never uses, such as data in another file",
            hint=hint,
        )
    if head is None or head.corrupt:
        raise HostLacksError(f"{path} is damaged: no qcow2 any more", hint=hint)
    wanted = disk_format.Qcow2Head(size_bytes, os.fsencode(rootfs), corrupt=False, foreign=False)
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
    if done.returncode not in _FINE:
        detail = (done.stdout + done.stderr).decode(errors="replace")[-1000:]
        raise HostLacksError(f"{path} is damaged", detail=detail.strip(), hint=hint)
