"""The driver ``dm-snapshot``: the image's rootfs behind a read-only loop device, a VM's changes in a store of its own.

::

    images/<id>/rootfs.img ── loop, read-only, shared by all VMs of the image ──┐
                                    (followed by zeros, if the VM's disk is larger)
    vms/<id>/overlay.cow ──── loop ──────────────────────────────────── /dev/dm-N, the VM's vda

The devices are there only while the VM runs: made when it starts, removed when it ends, by root's daemon itself or by banger-helper for others
(`banger.storage.snapshots`). So a host that was restarted needs nothing.

The store is not sparse while the VM runs: room is set aside ahead of what the guest writes (`tend`), since a snapshot whose store is full is
lost. When the VM ends the room that was not used is given back.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from pathlib import Path

from banger.host import dm, fs
from banger.host.probe import Answer
from banger.host.threads import stoppable
from banger.model.errors import BangerError, HostLacksError
from banger.model.machine import BootStack, DiskFormat, RootDisk, StoreFill, VmPaths
from banger.model.units import MIB, format_size
from banger.storage import disk_format
from banger.storage.files import check_size
from banger.storage.snapshots.direct import DirectSnapshots
from banger.storage.snapshots.port import SnapshotKey, Snapshots, installation

log = logging.getLogger(__name__)

AHEAD_BYTES = 256 * MIB  # what a guest may write between two looks at it
_SLACK_BYTES = MIB


class DmSnapshot:
    """See `banger.storage.drivers.Driver`. ``host`` makes the devices."""

    def __init__(self, host: Snapshots | None = None) -> None:
        self._host = DirectSnapshots() if host is None else host
        self._unknown = ""  # why nobody says how full stores are

    async def available(self) -> Answer:
        """Whether this host can."""
        return await self._host.available()

    async def make(self, boot: BootStack, size_bytes: int, paths: VmPaths) -> None:
        """A store of zeros, which the kernel takes for a new one; an empty file is one that was lost."""
        del boot, size_bytes
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        descriptor = os.open(paths.overlay_cow, flags, 0o600)
        try:
            os.ftruncate(descriptor, dm.CHUNK_SECTORS * dm.SECTOR_BYTES)
        finally:
            os.close(descriptor)

    async def check(self, boot: BootStack, size_bytes: int, paths: VmPaths, hint: str) -> None:
        """The kernel has not given it up, and it fits a disk of this size over this image."""
        check_size(boot.rootfs, None, boot.manifest.remedy)
        stored_bytes = check_size(paths.overlay_cow, None, hint)
        with paths.overlay_cow.open("rb") as file:
            head = disk_format.read_snapshot(file.read(disk_format.SNAPSHOT_HEAD_BYTES))
        if head is None:
            raise HostLacksError(
                f"{paths.overlay_cow} is damaged: no store of a snapshot any more", hint=hint
            )
        if not head.valid:
            raise HostLacksError(
                f"the root disk of VM {paths.state.name} is lost",
                detail=f"its store {paths.overlay_cow} was full or could not be written, and the kernel gave it up",
                hint=hint,
            )
        if stored_bytes > dm.store_limit_bytes(size_bytes) + _SLACK_BYTES:
            raise HostLacksError(
                f"{paths.overlay_cow} has the wrong size",
                detail=f"it has {format_size(stored_bytes)}, the disk {format_size(size_bytes)}",
                hint=hint,
            )

    async def open(self, boot: BootStack, size_bytes: int, paths: VmPaths) -> RootDisk:
        """The device; what an earlier daemon left of it is removed first."""
        key = SnapshotKey.of(paths)
        await self._host.close(key)
        await asyncio.to_thread(_set_room_aside, paths.overlay_cow, size_bytes)
        device = await self._host.open(key, boot.rootfs, paths.overlay_cow, size_bytes)
        return RootDisk(device, DiskFormat.RAW, device=True)

    async def close(self, paths: VmPaths) -> None:
        """Remove the device; give back room that was not used."""
        status = await self._host.close(SnapshotKey.of(paths))
        if status is not None and not status.broken:
            await asyncio.to_thread(_give_back, paths.overlay_cow, status.used_bytes)

    async def flatten(self, boot: BootStack, size_bytes: int, paths: VmPaths, target: Path) -> str:
        """Read from the mapping, which is there for the time of it."""
        try:
            disk = await self.open(boot, size_bytes, paths)
            await stoppable(fs.copy_data, disk.path, target)
        finally:
            await self.close(paths)
        return "read from its device"

    def needed_bytes(self, boot: BootStack) -> int:
        """What the first run sets aside."""
        del boot
        return AHEAD_BYTES

    async def tend(self, vms: Sequence[VmPaths]) -> list[StoreFill]:
        """How full the stores of ``vms`` are, after those that fill up have been made larger."""
        fills = []
        for directory in {paths.state.parent for paths in vms}:
            try:
                found = await self._host.statuses(installation(directory))
            except BangerError as error:
                if str(error) != self._unknown:  # not twice a second
                    log.warning("nobody says how full the stores of root disks are: %s", error)
                self._unknown = str(error)
                continue
            self._unknown = ""
            for paths in vms:
                status = found.get(paths.state.name) if paths.state.parent == directory else None
                if status is not None:
                    fills.append(await self._tend_one(paths, status))
        return fills

    async def devices(self, vms_dir: Path) -> frozenset[str]:
        """The VMs of ``vms_dir`` that have one."""
        return await self._host.there(installation(vms_dir))

    async def sweep(self, vms_dir: Path, running: frozenset[str]) -> list[str]:
        """Remove devices of this installation whose VM does not run; sentences about it."""
        return await self._host.sweep(installation(vms_dir), running)

    async def _tend_one(self, paths: VmPaths, status: dm.SnapshotStatus) -> StoreFill:
        vm_id = paths.state.name
        if status.broken:
            return StoreFill(vm_id, 0, 0, f"its root disk is lost ({status.broken})")
        used_bytes, size_bytes = status.used_bytes, status.size_bytes
        trouble = ""
        try:
            if size_bytes - used_bytes < AHEAD_BYTES:
                size_bytes = await self._make_room(paths, status)
        except (OSError, BangerError) as error:
            if size_bytes - used_bytes < AHEAD_BYTES // 2:
                trouble = f"the store of its root disk cannot grow beyond {format_size(size_bytes)}: {_why(error)}"
        return StoreFill(vm_id, used_bytes, size_bytes, trouble)

    async def _make_room(self, paths: VmPaths, status: dm.SnapshotStatus) -> int:
        """Make the store larger, but no larger than its disk can ever need; its size then. OSError if it cannot be."""
        store = paths.overlay_cow
        wanted_bytes = status.used_bytes + AHEAD_BYTES + AHEAD_BYTES // 4
        limit_bytes = dm.store_limit_bytes(status.disk_bytes)
        stored_bytes = store.stat().st_size  # more than the device has if a daemon ended in between
        wanted_bytes = max(stored_bytes, min(-(-wanted_bytes // MIB) * MIB, limit_bytes))
        if wanted_bytes <= status.size_bytes:
            return status.size_bytes
        if wanted_bytes > stored_bytes:
            await asyncio.to_thread(_grow, store, wanted_bytes)
        adopted = await self._host.adopt_growth(SnapshotKey.of(paths), store)
        return wanted_bytes if adopted else status.size_bytes


def _why(error: OSError | BangerError) -> str:
    if isinstance(error, BangerError):
        return error.what
    return "the host's disk is full" if error.errno in fs.FULL else error.strerror or str(error)


def _set_room_aside(store: Path, disk_bytes: int) -> None:
    """`AHEAD_BYTES` behind what is in it, but no more than it can ever need."""
    size_bytes = store.stat().st_size
    wanted_bytes = min(size_bytes + AHEAD_BYTES, dm.store_limit_bytes(disk_bytes))
    if wanted_bytes > size_bytes:
        _grow(store, wanted_bytes)


def _grow(store: Path, size_bytes: int) -> None:
    """Give ``store`` real blocks up to ``size_bytes``; OSError if there are none, and it has its old size."""
    descriptor = os.open(store, os.O_RDWR | os.O_CLOEXEC)
    try:
        old_bytes = os.fstat(descriptor).st_size
        try:
            os.posix_fallocate(descriptor, old_bytes, size_bytes - old_bytes)
        except OSError:
            os.ftruncate(descriptor, old_bytes)
            raise
    finally:
        os.close(descriptor)


def _give_back(store: Path, used_bytes: int) -> None:
    if store.exists() and store.stat().st_size > used_bytes + _SLACK_BYTES:
        os.truncate(store, used_bytes + _SLACK_BYTES)
