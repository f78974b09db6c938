"""The drivers ``reflink`` and ``copy``: a whole raw disk in the image's place. Any VMM runs it.

A reflink shares the image's blocks until either side changes them: it costs nothing. A copy costs the time and room of the image's data,
and has all its room from the first moment on.
"""

from __future__ import annotations

import os
from pathlib import Path

from banger.host import fs
from banger.host.threads import in_thread, stoppable
from banger.model.errors import HostLacksError
from banger.model.machine import BootStack, DiskFormat, RootDisk, VmPaths
from banger.storage.files import check_size, ext4_bytes


class Raw:
    """See `banger.storage.drivers.Driver`; ``shared``: its blocks are the image's."""

    def __init__(self, *, shared: bool) -> None:
        self._shared = shared

    async def make(self, boot: BootStack, size_bytes: int, paths: VmPaths) -> None:
        """The guest grows its file system when it boots."""
        path = paths.overlay_raw
        if self._shared:
            await in_thread(fs.reflink_file, boot.rootfs, path)
        else:
            await stoppable(fs.copy_file, boot.rootfs, path)
        os.truncate(path, size_bytes)

    async def check(self, boot: BootStack, size_bytes: int, paths: VmPaths, hint: str) -> None:
        """An ext4 of the right size is in it."""
        del boot
        check_size(paths.overlay_raw, size_bytes, hint)
        if ext4_bytes(paths.overlay_raw) is None:
            raise HostLacksError(f"{paths.overlay_raw} has no ext4 file system any more", hint=hint)

    async def open(self, boot: BootStack, size_bytes: int, paths: VmPaths) -> RootDisk:
        """The VMM opens the file itself."""
        del boot, size_bytes
        return RootDisk(paths.overlay_raw, DiskFormat.RAW)

    async def close(self, paths: VmPaths) -> None:
        """There is nothing but the file."""

    async def flatten(self, boot: BootStack, size_bytes: int, paths: VmPaths, target: Path) -> str:
        """It is flat already: its blocks are shared where the file system can."""
        del boot, size_bytes
        return await stoppable(fs.clone_file, paths.overlay_raw, target)

    def needed_bytes(self, boot: BootStack) -> int:
        """The image's data, unless they are shared."""
        return 0 if self._shared else fs.allocated_bytes(boot.rootfs)
