"""The port of storage drivers: how a VM's root disk shares the image's data. Each driver keeps one file in the VM's directory.

The file's name tells the driver family, so that a VM keeps the one that it was made with whatever is configured later.
"""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from banger.model.machine import BootStack, RootDisk, StorageDriver, VmPaths


class Driver(Protocol):
    """One way to make root disks. ``hint`` of `check` is what to say to who has to do something about it."""

    async def make(self, boot: BootStack, size_bytes: int, paths: VmPaths) -> None:
        """Make the VM's file; it does not exist. What is left of a failure is removed by the caller."""
        ...

    async def check(self, boot: BootStack, size_bytes: int, paths: VmPaths, hint: str) -> None:
        """HostLacksError with ``hint`` unless the file is whole, over this image, and of this size."""
        ...

    async def open(self, boot: BootStack, size_bytes: int, paths: VmPaths) -> RootDisk:
        """What a VMM can use, for one run; on failure nothing is left."""
        ...

    async def close(self, paths: VmPaths) -> None:
        """Take back what `open` made on the host; idempotent."""
        ...

    async def flatten(self, boot: BootStack, size_bytes: int, paths: VmPaths, target: Path) -> str:
        """Copy the disk to the new raw file ``target``, holes where there is nothing; a few words on how. What it opens it closes."""
        ...

    def needed_bytes(self, boot: BootStack) -> int:
        """The room that `make` takes at once."""
        ...


def file_of(paths: VmPaths, driver: StorageDriver) -> Path:
    """The file that ``driver`` keeps."""
    match driver:
        case StorageDriver.QCOW2:
            return paths.overlay
        case StorageDriver.DM_SNAPSHOT:
            return paths.overlay_cow
        case StorageDriver.REFLINK | StorageDriver.COPY:
            return paths.overlay_raw


def files_of_all(paths: VmPaths) -> tuple[Path, ...]:
    """The files that any driver may keep."""
    return tuple(dict.fromkeys(file_of(paths, driver) for driver in StorageDriver))


def find(paths: VmPaths) -> StorageDriver | None:
    """The driver whose file is there; a raw file counts as reflink, which is what it is once it is made. None if there is none."""
    return next((driver for driver in StorageDriver if file_of(paths, driver).exists()), None)


def find_disk(paths: VmPaths) -> RootDisk | None:
    """The file of the root disk that is there; None if there is none."""
    driver = find(paths)
    return None if driver is None else RootDisk(file_of(paths, driver), driver.disk_format)
