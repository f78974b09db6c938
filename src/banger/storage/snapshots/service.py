"""Snapshot devices for ordinary users: banger-helper's part of the driver ``dm-snapshot``. Runs as root.

A caller hands over two files as descriptors and a few numbers; names follow from the slot that it is given, and the device is a node of the kernel's,
which belongs to the caller until the mapping goes. Nothing of a caller's is waited for while another one's request waits: each user has a lock.

The ledger says first what is about to be made. Loop devices are held by the mappings, so a helper that is killed leaves mappings alone, which
`start` brings together with the ledger.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable
from collections.abc import Mapping as MappingOf
from contextlib import ExitStack
from pathlib import Path

from banger.host import dm, faults, fs, loop, probe
from banger.host.dm import Mapping, SnapshotStatus
from banger.host.ledger import Ledger, Row
from banger.host.locks import FileLock
from banger.host.loop import Backing
from banger.host.offered import Offered, taken
from banger.host.probe import Answer
from banger.host.undo import UndoStack
from banger.model.errors import (
    BangerError,
    CommandFailedError,
    HostLacksError,
    NotFoundError,
    RefusedError,
)
from banger.storage import disk_format
from banger.storage.snapshots import rules
from banger.storage.snapshots.direct import adopt_below
from banger.storage.snapshots.mapper import Mapper
from banger.storage.snapshots.rules import Attached, Names, Quota

log = logging.getLogger(__name__)
KIND = "snapshot"
REMOVE_S = 5.0


class SnapshotService:
    """All snapshots that users have on this host. One process has it at a time; ``directory`` is that process's own, private."""

    def __init__(
        self,
        directory: Path,
        *,
        quota: Quota | None = None,
        mapper: Mapper = dm,
        able: Callable[[], Answer] = probe.device_mapper,
    ) -> None:
        self._directory = directory
        self._quota = quota or Quota()
        self._mapper = mapper
        self._able = able
        self._file_lock = FileLock(directory / "snapshots.lock")
        self._ledger: Ledger | None = None
        self._locks: dict[int, asyncio.Lock] = {}

    @property
    def ledger(self) -> Ledger:
        """The ledger, once started."""
        if self._ledger is None:
            raise RuntimeError("the service is not started")
        return self._ledger

    async def start(self) -> None:
        """Take the ledger, and remove what is not whole. What cannot be removed now is tried again at the next start."""
        fs.make_private_dir(self._directory)
        self._file_lock.take_service("snapshots")
        try:
            self._ledger = Ledger(self._directory / "snapshots.json")
            if self._mapper.is_there():  # a host without dmsetup has uplinks all the same
                await _try(self._tidy(self.ledger.rows(KIND)))
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go: snapshots live on. Idempotent."""
        self._ledger = None
        self._file_lock.release()

    async def able(self) -> Answer:
        """Whether this host can; a no is asked again the next time, for modules are loaded later."""
        answer = await asyncio.to_thread(self._able)
        if not answer:
            probe.device_mapper.cache_clear()
        return answer

    async def attach(
        self, uid: int, numbers: tuple[int, int, int], image: int, store: int
    ) -> Attached:
        """Make a snapshot device over the files behind two descriptors. ``numbers``: installation, VM, sectors of the disk; one that this VM
        has already is replaced.
        """
        rules.check_numbers(*numbers)
        installation, vm, sectors = numbers
        if not (answer := await self.able()):
            raise HostLacksError(
                "this host has no snapshots for banger-helper",
                detail=answer.why,
                hint=answer.hint or "sudo banger setup helper --storage",
            )
        with (
            taken(image, "the image") as base,
            taken(store, "the store", owner=uid) as changes,
        ):
            head = os.pread(changes.descriptor, disk_format.SNAPSHOT_HEAD_BYTES, 0)
            rules.check_files(base.size_bytes, changes.size_bytes, head, sectors)
            async with self._lock(uid):
                there = await self._tidy([row for row in self.ledger.rows(KIND) if row.uid == uid])
                for row in self.ledger.rows(KIND):
                    facts = (row.uid, row.facts["installation"], row.facts["vm"])
                    if facts == (uid, installation, vm):
                        await self._unmake(row, there)
                self._check_unused(changes)
                row = self._intend(uid, numbers, changes, there.values())
                return await self._make(row, sectors, base, changes)

    async def detach(self, uid: int, number: int) -> Attached | None:
        """Take a snapshot of ``uid``'s back; how full its store was. Idempotent: None if there is none. Root may take everybody's.

        One that is busy is tried again for `REMOVE_S`, and is an error then.
        """
        row = self._row(number)
        if row is None:
            return None
        if uid not in {0, row.uid}:
            raise NotFoundError(f"no snapshot {number} of yours", hint="banger vm list")
        async with self._lock(row.uid):
            if self._row(number) != row:  # gone while we waited
                return None
            there = await self._there()
            statuses = await self._mapper.statuses()
            await self._unmake(row, there)
        return self._told(row, statuses)

    async def grown(self, uid: int, number: int) -> bool:
        """Make use of what the store has grown by; whether there is such a snapshot."""
        row = self._row(number)
        if row is None or not row.done or uid not in {0, row.uid}:
            return False
        mapping = (await self._there()).get(self._names(row).disk_uuid)
        backing = Backing(int(row.facts["device"]), int(row.facts["inode"]))
        return mapping is not None and adopt_below(self._mapper.below(mapping), backing)

    async def list(self, uid: int) -> list[Attached]:
        """The snapshots of ``uid``'s; for root everybody's."""
        rows = [row for row in self.ledger.rows(KIND) if row.done and uid in {0, row.uid}]
        if not rows:
            return []
        statuses = await self._mapper.statuses() if self._mapper.is_there() else {}
        return [self._told(row, statuses) for row in rows if self._names(row).disk in statuses]

    # Making and unmaking; the caller has its user's lock

    def _lock(self, uid: int) -> asyncio.Lock:
        if len(self._locks) > rules.MAX_SLOTS:
            self._locks = {u: each for u, each in self._locks.items() if each.locked()}
        return self._locks.setdefault(uid, asyncio.Lock())

    def _row(self, number: int) -> Row | None:
        return next((row for row in self.ledger.rows(KIND) if row.key == str(number)), None)

    def _names(self, row: Row) -> Names:
        return Names(int(row.key), self.ledger.token)

    async def _there(self) -> dict[str, Mapping]:
        """All mappings by their uuid. HostLacksError if they cannot be told any more: then nothing may be struck either."""
        if not self._mapper.is_there():
            raise HostLacksError(
                "banger-helper may not use the device mapper",
                detail="there is none, or it was taken from it",
                hint="sudo banger setup helper --storage",
            )
        return {mapping.uuid: mapping for mapping in await self._mapper.mappings()}

    def _check_unused(self, store: Offered) -> None:
        place = (store.backing.device, store.backing.inode)
        for row in self.ledger.rows(KIND):
            if (row.facts["device"], row.facts["inode"]) == place:
                raise RefusedError(
                    f"the store is snapshot {row.key}'s",
                    detail="two devices over one store would destroy what is in it",
                    hint="banger vm list",
                )

    def _intend(
        self,
        uid: int,
        numbers: tuple[int, int, int],
        store: Offered,
        there: Iterable[Mapping],
    ) -> Row:
        """A row for the lowest slot that is nobody's, on this host either; it is being made from now on."""
        installation, vm, sectors = numbers
        rows = self.ledger.rows(KIND)
        sizes = [int(row.facts["sectors"]) * dm.SECTOR_BYTES for row in rows if row.uid == uid]
        self._quota.check(uid, sizes, sectors * dm.SECTOR_BYTES)
        used = {int(row.key) for row in rows} | rules.named_so(there)
        number = rules.free_slot(used)
        return self.ledger.intend(
            KIND, str(number), uid, installation=installation, vm=vm, sectors=sectors,
            device=store.backing.device, inode=store.backing.inode,
        )  # fmt: skip

    async def _make(self, row: Row, sectors: int, base: Offered, store: Offered) -> Attached:
        names, mark = self._names(row), f"banger-helper {self.ledger.token}"
        limit_bytes = dm.store_limit_bytes(sectors * dm.SECTOR_BYTES)
        image_sectors = base.size_bytes // dm.SECTOR_BYTES
        async with UndoStack() as undo:
            undo.push("take the snapshot back", lambda: self._take_back(row))
            await faults.point("snapshot.attach.intended")
            with ExitStack() as open_:
                origin = open_.enter_context(
                    loop.held_over(base.descriptor, mark, read_only=True, shared=True)
                ).path
                changes = open_.enter_context(
                    loop.held_over(store.descriptor, mark, read_only=False, limit_bytes=limit_bytes)
                ).path
                await faults.point("snapshot.attach.loops")
                if sectors > image_sectors:
                    table = dm.linear_then_zeros(origin, image_sectors, sectors)
                    origin = await self._mapper.create(
                        names.base, names.base_uuid, table, read_only=True
                    )
                    await faults.point("snapshot.attach.base")
                table = dm.snapshot(origin, changes, sectors)
                device = await self._mapper.create(names.disk, names.disk_uuid, table)
            await faults.point("snapshot.attach.made")
            rules.check_table(await self._mapper.table(names.disk))
            number = os.minor((await asyncio.to_thread(device.stat)).st_rdev)
            self._mapper.give(Mapping(names.disk, names.disk_uuid, number), row.uid)
            await faults.point("snapshot.attach.given")
            row = self.ledger.done(row, path=str(device))
            undo.release()
        await faults.point("snapshot.attach.done")
        log.info("snapshot %s made for user %d", row.key, row.uid)
        return self._told(row, {})

    async def _take_back(self, row: Row) -> None:
        await self._unmake(row, await self._there())

    async def _unmake(self, row: Row, there: MappingOf[str, Mapping]) -> None:
        """Remove the mappings if they are ours, and strike the row; idempotent. First nobody else may open the device any more."""
        names = self._names(row)
        if names.disk_uuid in there:
            self._mapper.take_back(there[names.disk_uuid])
            await faults.point("snapshot.detach.taken")
            await self._remove(names.disk_uuid, row)
            await faults.point("snapshot.detach.disk")
        if names.base_uuid in there:
            await self._remove(names.base_uuid, row)
            await faults.point("snapshot.detach.base")
        self.ledger.strike(row)
        await faults.point("snapshot.detach.done")

    async def _remove(self, uuid: str, row: Row) -> None:
        try:
            await self._mapper.remove(uuid, timeout_s=REMOVE_S)
        except CommandFailedError as error:
            raise RefusedError(
                f"snapshot {row.key} is in use",
                detail=error.detail,
                hint="end what has its device open: banger vm stop --force",
            ) from error

    async def _tidy(self, rows: Iterable[Row]) -> dict[str, Mapping]:
        """Undo those of ``rows`` that are not whole, and remove mappings of ours that no row asks for: a helper was killed, or the host
        restarted. All mappings, by their uuid, as they were before. What is busy is tried again the next time.
        """
        there = await self._there()
        for row in rows:
            if not (row.done and row.this_boot and self._names(row).disk_uuid in there):
                await _try(self._unmake(row, there))
        for mapping in sorted(there.values(), key=lambda one: one.uuid.endswith("-base")):
            slot = rules.slot_of(mapping, self.ledger.token)
            if (
                slot is not None and self._row(slot) is None
            ):  # its name is taken: nobody else gets it
                self._mapper.take_back(mapping)
                await _try(self._mapper.remove(mapping.uuid, timeout_s=REMOVE_S))
        return there

    def _told(self, row: Row, statuses: MappingOf[str, SnapshotStatus]) -> Attached:
        status = statuses.get(self._names(row).disk, SnapshotStatus())
        return Attached(
            int(row.key), row.uid, int(row.facts["installation"]), int(row.facts["vm"]),
            str(row.facts.get("path", "")), int(row.facts["sectors"]) * dm.SECTOR_BYTES,
            status.used_bytes, status.size_bytes, status.broken,
        )  # fmt: skip


async def _try(removal: Awaitable[object]) -> None:
    try:
        await removal
    except BangerError as error:
        log.warning("snapshots that nobody needs could not be removed: %s", error)
