"""Snapshot devices made by this process itself, which is root.

A mapping is ours by its uuid, which has the installation in it; loop devices are held by the mappings and go with them, so who uses an
image's loop device is known to the kernel alone.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from banger.host import dm, loop, probe
from banger.host.loop import Backing
from banger.host.probe import Answer
from banger.host.undo import UndoStack
from banger.model.errors import BangerError, CommandFailedError, RefusedError
from banger.model.ids import is_id
from banger.storage.snapshots.port import SnapshotKey

_PREFIX = "banger-"
_BASE = "-base"


class _Names:
    """Names and uuids of one VM's mappings."""

    def __init__(self, key: SnapshotKey) -> None:
        self.disk, self.base = f"{_PREFIX}{key.vm_id}", f"{_PREFIX}{key.vm_id}{_BASE}"
        self.disk_uuid = f"{uuid_stem(key.installation)}{key.vm_id}"
        self.base_uuid = f"{self.disk_uuid}{_BASE}"


def uuid_stem(of: str) -> str:
    """What the uuids of an installation's mappings begin with."""
    return f"BANGER-{of}-"


class DirectSnapshots:
    """See `Snapshots`."""

    async def available(self) -> Answer:
        """Whether this process is root, on a kernel that has them."""
        return await asyncio.to_thread(probe.device_mapper)

    async def open(self, key: SnapshotKey, image: Path, store: Path, size_bytes: int) -> Path:
        """Both loop devices and the mapping."""
        names = _Names(key)
        image_bytes = (await asyncio.to_thread(image.stat)).st_size
        async with UndoStack() as undo:
            with ExitStack() as open_:
                origin = open_.enter_context(loop.held(image, read_only=True, shared=True)).path
                changes = open_.enter_context(loop.held(store, read_only=False)).path
                sectors = size_bytes // dm.SECTOR_BYTES
                if size_bytes > image_bytes:
                    table = dm.linear_then_zeros(origin, image_bytes // dm.SECTOR_BYTES, sectors)
                    undo.push("remove the base", lambda: dm.remove(names.base_uuid))
                    origin = await _create(names.base, names.base_uuid, table, read_only=True)
                undo.push("remove the snapshot", lambda: dm.remove(names.disk_uuid))
                table = dm.snapshot(origin, changes, sectors)
                device = await _create(names.disk, names.disk_uuid, table)
            undo.release()
        return device

    async def close(self, key: SnapshotKey) -> dm.SnapshotStatus | None:
        """Remove the mappings, with which the loop devices go."""
        names = _Names(key)
        there = {mapping.uuid for mapping in await dm.mappings()} if dm.is_there() else set()
        status = None
        if names.disk_uuid in there:
            status = (await dm.statuses()).get(names.disk)
            await dm.remove(names.disk_uuid)
        if names.base_uuid in there:
            await dm.remove(names.base_uuid)
        return status

    async def statuses(self, of: str) -> dict[str, dm.SnapshotStatus]:
        """By name: there can be one of a name, and who has another installation's VM of the same id has ended long since."""
        del of
        found = await dm.statuses()
        return {name.removeprefix(_PREFIX): each for name, each in found.items()}

    async def adopt_growth(self, key: SnapshotKey, store: Path) -> bool:
        """By the loop device under the mapping, if it is over this very file."""
        mapping = await dm.find(_Names(key).disk)
        return mapping is not None and await asyncio.to_thread(_adopt, mapping, store)

    async def there(self, of: str) -> frozenset[str]:
        """By uuid; a snapshot's base alone counts too."""
        if not dm.is_there():
            return frozenset()
        try:
            found = await dm.mappings()
        except BangerError:
            return frozenset()
        ours = uuid_stem(of)
        names = (
            m.uuid.removeprefix(ours).removesuffix(_BASE) for m in found if m.uuid.startswith(ours)
        )
        return frozenset(name for name in names if is_id(name))

    async def sweep(self, of: str, running: frozenset[str]) -> list[str]:
        """Snapshots go before what they are made of."""
        ours = uuid_stem(of)
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


async def _create(name: str, uuid: str, table: str, *, read_only: bool = False) -> Path:
    """Make a mapping; RefusedError if somebody else has one of this name."""
    try:
        return await dm.create(name, uuid, table, read_only=read_only)
    except CommandFailedError as error:
        other = await dm.find(name)
        if other is None or other.uuid == uuid:
            raise
        raise RefusedError(
            f"device {name} is in the way: it is not banger's, or another installation's",
            detail=f"its uuid is {other.uuid or 'empty'}",
            hint=f"sudo dmsetup info {name}",
        ) from error


def _adopt(mapping: dm.Mapping, store: Path) -> bool:
    descriptor = os.open(store, os.O_RDONLY | os.O_CLOEXEC)
    try:
        backing = Backing.of(descriptor)
    finally:
        os.close(descriptor)
    return adopt_below(dm.below(mapping), backing)


def adopt_below(devices: Iterable[Path], backing: Backing) -> bool:
    """Tell the one of ``devices`` that is a loop device over ``backing`` that its file has grown; whether there was one."""
    for device in devices:
        if device.name.startswith("loop") and loop.backing_of(device) == backing:
            loop.adopt_size(device, backing)
            return True
    return False
