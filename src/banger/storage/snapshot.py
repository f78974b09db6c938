"""The driver ``dm-snapshot``: the image's rootfs behind a read-only loop device, a VM's changes in a store of its own.

::

    images/<id>/rootfs.img ── loop, read-only, shared by all VMs of the image ──┐
                                    (followed by zeros, if the VM's disk is larger: banger-<vm>-base)
    vms/<id>/overlay.cow ──── loop ─────────────────────────────────────── banger-<vm> = /dev/dm-N, the VM's vda

The devices are there only while the VM runs: made when it starts, removed when it ends. So a host that was restarted needs nothing, and who
uses an image's loop device is known to the kernel alone. A mapping is ours by its uuid, which has the state directory in it.

The store is not sparse while the VM runs: room is set aside ahead of what the guest writes (`tend`), since a snapshot whose store is full is
lost. When the VM ends the room that was not used is given back.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

from banger.host import dm, fs, loop
from banger.host.loop import Backing
from banger.host.undo import UndoStack
from banger.model.errors import BangerError, CommandFailedError, HostLacksError, RefusedError
from banger.model.ids import is_id
from banger.model.machine import BootStack, DiskFormat, RootDisk, StoreFill, VmPaths
from banger.model.units import MIB, format_size
from banger.storage import disk_format
from banger.storage.files import check_size

log = logging.getLogger(__name__)

AHEAD_BYTES = 256 * MIB  # what a guest may write between two looks at it
_SLACK_BYTES = MIB
_PREFIX = "banger-"
_BASE = "-base"


def installation(vms_dir: Path) -> str:
    """What the mappings of the VMs in ``vms_dir`` have in their uuids, and no other installation's."""
    return f"BANGER-{hashlib.sha256(os.fsencode(vms_dir.resolve())).hexdigest()[:12]}-"


class _Names:
    """Names and uuids of one VM's mappings."""

    def __init__(self, paths: VmPaths) -> None:
        vm_id, ours = paths.state.name, installation(paths.state.parent)
        self.disk, self.base = f"{_PREFIX}{vm_id}", f"{_PREFIX}{vm_id}{_BASE}"
        self.disk_uuid, self.base_uuid = f"{ours}{vm_id}", f"{ours}{vm_id}{_BASE}"


class DmSnapshot:
    """See `banger.storage.drivers.Driver`."""

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
        """Both loop devices and the mapping; what an earlier daemon left of it is removed first."""
        names = _Names(paths)
        there = await dm.mappings()
        if {names.disk_uuid, names.base_uuid} & {one.uuid for one in there}:
            await self.close(paths)
            there = await dm.mappings()
        other = next((one for one in there if one.name in {names.disk, names.base}), None)
        if other is not None:
            raise RefusedError(
                f"device {other.name} is in the way: it is not banger's, or another installation's",
                detail=f"its uuid is {other.uuid or 'empty'}",
                hint=f"sudo dmsetup info {other.name}",
            )
        await asyncio.to_thread(_set_room_aside, paths.overlay_cow, size_bytes)
        image_bytes = boot.rootfs.stat().st_size
        async with UndoStack() as undo:
            with ExitStack() as open_:
                origin = open_.enter_context(
                    loop.held(boot.rootfs, read_only=True, shared=True)
                ).path
                store = open_.enter_context(loop.held(paths.overlay_cow, read_only=False)).path
                sectors = size_bytes // dm.SECTOR_BYTES
                if size_bytes > image_bytes:
                    table = dm.linear_then_zeros(origin, image_bytes // dm.SECTOR_BYTES, sectors)
                    undo.push("remove the base", lambda: dm.remove(names.base_uuid))
                    origin = await dm.create(names.base, names.base_uuid, table, read_only=True)
                undo.push("remove the snapshot", lambda: dm.remove(names.disk_uuid))
                table = dm.snapshot(origin, store, sectors)
                device = await dm.create(names.disk, names.disk_uuid, table)
            undo.release()
        return RootDisk(device, DiskFormat.RAW, device=True)

    async def close(self, paths: VmPaths) -> None:
        """Remove the mappings, with which the loop devices go; give back room that was not used."""
        names = _Names(paths)
        there = {mapping.uuid for mapping in await dm.mappings()} if dm.is_there() else set()
        if names.disk_uuid in there:
            status = (await dm.statuses()).get(names.disk)
            await dm.remove(names.disk_uuid)
            if status is not None and not status.broken:
                await asyncio.to_thread(_give_back, paths.overlay_cow, status.used_bytes)
        if names.base_uuid in there:
            await dm.remove(names.base_uuid)

    def needed_bytes(self, boot: BootStack) -> int:
        """What the first run sets aside."""
        del boot
        return AHEAD_BYTES

    async def tend(self, vms: Sequence[VmPaths]) -> list[StoreFill]:
        """How full the stores of ``vms`` are, after those that fill up have been made larger."""
        try:
            found = await dm.statuses()
        except BangerError as error:
            log.warning("the device mapper does not say how full stores are: %s", error)
            return []
        fills = []
        for paths in vms:
            status = found.get(_Names(paths).disk)
            if status is not None:
                fills.append(await _tend_one(paths, status))
        return fills

    async def sweep(self, vms_dir: Path, running: frozenset[str]) -> list[str]:
        """Remove mappings of this installation whose VM does not run; sentences about it. Snapshots go before what they are made of."""
        ours = installation(vms_dir)
        said: list[str] = []
        if not dm.is_there():
            return said
        try:
            there = await dm.mappings()
        except BangerError as error:
            return [f"the device mapper does not say what is there: {error}"]
        for mapping in sorted(there, key=lambda one: one.name.endswith(_BASE)):
            vm_id = mapping.uuid.removeprefix(ours).removesuffix(_BASE)
            if not mapping.uuid.startswith(ours) or not is_id(vm_id) or vm_id in running:
                continue
            if mapping.name not in {f"{_PREFIX}{vm_id}", f"{_PREFIX}{vm_id}{_BASE}"}:
                said.append(f"device {mapping.name} has banger's uuid and another name: left alone")
                continue
            try:
                await dm.remove(mapping.uuid)
                said.append(f"device {mapping.name}, whose VM does not run, was removed")
            except CommandFailedError as error:
                said.append(f"device {mapping.name} could not be removed: {error.detail}")
        return said


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


async def _tend_one(paths: VmPaths, status: dm.SnapshotStatus) -> StoreFill:
    vm_id = paths.state.name
    if status.broken:
        return StoreFill(vm_id, 0, 0, f"its root disk is lost ({status.broken})")
    used_bytes, size_bytes = status.used_bytes, status.size_bytes
    trouble = ""
    try:
        if size_bytes - used_bytes < AHEAD_BYTES:
            mapping = await dm.find(_Names(paths).disk)
            if mapping is not None:
                wanted_bytes = used_bytes + AHEAD_BYTES + AHEAD_BYTES // 4
                size_bytes = await asyncio.to_thread(
                    _make_room, paths, mapping, size_bytes, wanted_bytes
                )
    except OSError as error:
        if size_bytes - used_bytes < AHEAD_BYTES // 2:
            full = "the host's disk is full" if error.errno in fs.FULL else error.strerror
            trouble = (
                f"the store of its root disk cannot grow beyond {format_size(size_bytes)}: {full}"
            )
    return StoreFill(vm_id, used_bytes, size_bytes, trouble)


def _make_room(paths: VmPaths, mapping: dm.Mapping, size_bytes: int, wanted_bytes: int) -> int:
    """Make the store ``wanted_bytes`` large, but no larger than its disk can ever need; its size then. OSError if it cannot be."""
    store = paths.overlay_cow
    descriptor = os.open(store, os.O_RDONLY | os.O_CLOEXEC)
    try:
        backing = Backing.of(descriptor)
    finally:
        os.close(descriptor)
    limit_bytes = dm.store_limit_bytes(dm.size_bytes(mapping))
    stored_bytes = store.stat().st_size  # more than the device has if a daemon ended in between
    wanted_bytes = max(stored_bytes, min(-(-wanted_bytes // MIB) * MIB, limit_bytes))
    if wanted_bytes <= size_bytes:
        return size_bytes
    if wanted_bytes > stored_bytes:
        _grow(store, wanted_bytes)
    for device in dm.below(mapping):
        if device.name.startswith("loop") and loop.backing_of(device) == backing:
            loop.adopt_size(device, backing)
            return wanted_bytes
    return size_bytes
