"""VMs, leases, operations and the ledger. Synchronous: every call is a few small statements on a local file.

Each public method is one transaction. Callers are on one thread (the daemon's event loop).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from banger.model import clock
from banger.model.errors import HostLacksError, RefusedError
from banger.model.lease import Lease
from banger.model.record import ErrorRecord, LedgerRow, OperationRecord, StageRecord, VmRecord
from banger.model.state import OperationState
from banger.store.database import is_disk_full, open_database

KEEP_OPERATIONS = 1000
_STAGE = msgspec.json.Decoder(StageRecord)
_Row = tuple[str, str, str, str, str, str, float | None, str | None]


def _dump(value: object) -> str:
    return msgspec.json.encode(value).decode()


class Store:
    """The daemon's database in one file. ``kept_aside`` is where a damaged predecessor went, if there was one."""

    def __init__(self, path: Path) -> None:
        opened = open_database(path)
        self._db = opened.connection
        self._path = path
        self.kept_aside = opened.kept_aside

    def close(self) -> None:
        """Close the file; the store is of no use afterwards."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db
            self._db.execute("COMMIT")
        except BaseException as error:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            if isinstance(
                error, sqlite3.OperationalError | sqlite3.DatabaseError
            ) and not isinstance(error, sqlite3.IntegrityError):
                full = is_disk_full(error)
                raise HostLacksError(
                    "the state disk is full"
                    if full
                    else f"database {self._path} cannot be written",
                    detail=str(error),
                    hint=f"see: df -h {self._path.parent}",
                ) from error
            raise

    # VMs and leases

    def insert_vm(self, record: VmRecord, lease: Lease | None) -> None:
        """Add a VM with its lease; RefusedError if the name or the lease is taken."""
        try:
            with self._transaction() as db:
                db.execute(
                    "INSERT INTO vms VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        record.id,
                        record.name,
                        record.state,
                        record.created_at,
                        record.image_id,
                        _dump(record),
                    ),
                )
                if lease is not None:
                    db.execute(
                        "INSERT INTO leases VALUES (?, ?, ?)",
                        (record.id, lease.index, _dump(lease)),
                    )
        except sqlite3.IntegrityError as error:
            raise _taken(record.name, error) from error

    def update_vm(self, record: VmRecord) -> None:
        """Replace a VM's record; RefusedError if its new name is taken."""
        try:
            with self._transaction() as db:
                db.execute(
                    "UPDATE vms SET name = ?, state = ?, image_id = ?, record_json = ? WHERE id = ?",
                    (record.name, record.state, record.image_id, _dump(record), record.id),
                )
        except sqlite3.IntegrityError as error:
            raise _taken(record.name, error) from error

    def delete_vm(self, vm_id: str) -> None:
        """Forget a VM and its lease; idempotent."""
        with self._transaction() as db:
            db.execute("DELETE FROM vms WHERE id = ?", (vm_id,))

    def vms(self) -> list[VmRecord]:
        """All VMs, oldest first."""
        rows = self._db.execute("SELECT record_json FROM vms ORDER BY created_at, id")
        return [msgspec.json.decode(row[0], type=VmRecord) for row in rows]

    def update_lease(self, lease: Lease) -> None:
        """Replace the addresses of a VM's lease; its number stays."""
        with self._transaction() as db:
            db.execute(
                "UPDATE leases SET lease_json = ? WHERE vm_id = ? AND idx = ?",
                (_dump(lease), lease.vm_id, lease.index),
            )

    def leases(self) -> list[Lease]:
        """All leases."""
        rows = self._db.execute("SELECT lease_json FROM leases ORDER BY idx")
        return [msgspec.json.decode(row[0], type=Lease) for row in rows]

    # Operations

    def insert_operation(self, operation: OperationRecord) -> None:
        """Add an operation and drop the oldest finished ones beyond `KEEP_OPERATIONS`."""
        with self._transaction() as db:
            db.execute(
                "INSERT INTO operations SELECT ?, coalesce(max(seq), 0) + 1, ?, ?, ?, ?, ?, ?, ? FROM operations",
                (
                    operation.id, operation.kind, operation.target, operation.target_name, operation.state,
                    operation.created_at, operation.duration_ms, _error_text(operation.error),
                ),
            )  # fmt: skip
            db.execute(
                "DELETE FROM operations WHERE state NOT IN ('pending', 'running')"
                " AND seq <= (SELECT max(seq) FROM operations) - ?",
                (KEEP_OPERATIONS,),
            )

    def update_operation(self, operation: OperationRecord) -> None:
        """Write an operation's state, duration, target and error (not its stages)."""
        with self._transaction() as db:
            db.execute(
                "UPDATE operations SET state = ?, target = ?, target_name = ?, duration_ms = ?, error_json = ?"
                " WHERE id = ?",
                (
                    operation.state, operation.target, operation.target_name, operation.duration_ms,
                    _error_text(operation.error), operation.id,
                ),
            )  # fmt: skip

    def put_stage(self, operation_id: str, seq: int, stage: StageRecord) -> None:
        """Add or replace stage number ``seq`` (from 0) of an operation."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO stages VALUES (?, ?, ?)", (operation_id, seq, _dump(stage))
            )

    def operations(self, *, limit: int = 100) -> list[OperationRecord]:
        """The newest operations, newest first."""
        return self._operations("ORDER BY seq DESC LIMIT ?", (limit,))

    def operation(self, operation_id: str) -> OperationRecord | None:
        """One operation by its full id or unique prefix."""
        found = self._operations(
            "WHERE substr(id, 1, ?) = ? LIMIT 2", (len(operation_id), operation_id)
        )
        return found[0] if len(found) == 1 and operation_id else None

    def unfinished_operations(self) -> list[OperationRecord]:
        """Operations that an ended daemon left pending or running, oldest first."""
        return self._operations("WHERE state IN ('pending', 'running') ORDER BY seq", ())

    def _operations(self, where: str, values: tuple[object, ...]) -> list[OperationRecord]:
        """Two statements, however many there are: a list is asked for all the time."""
        columns = "id, kind, target, target_name, state, created_at, duration_ms, error_json"
        rows = self._db.execute(f"SELECT {columns} FROM operations {where}", values).fetchall()  # noqa: S608  fixed text
        stages: dict[str, list[StageRecord]] = {}
        for operation_id, text in self._db.execute(
            f"SELECT operation_id, stage_json FROM stages WHERE operation_id IN (SELECT id FROM operations {where}) ORDER BY operation_id, seq",  # noqa: S608
            values,
        ):
            stages.setdefault(operation_id, []).append(_STAGE.decode(text))
        return [_operation(row, stages.get(row[0], ())) for row in rows]

    # Ledger

    def intend(self, vm_id: str, effect: str) -> None:
        """Record that ``effect`` is about to be made for a VM, before it is."""
        with self._transaction() as db:
            db.execute(
                "INSERT OR REPLACE INTO ledger VALUES (?, ?, 0, ?)", (vm_id, effect, clock.now())
            )

    def settle(self, vm_id: str, effect: str) -> None:
        """Record that ``effect`` has been made."""
        with self._transaction() as db:
            db.execute("UPDATE ledger SET done = 1 WHERE vm_id = ? AND effect = ?", (vm_id, effect))

    def strike(self, vm_id: str, effect: str) -> None:
        """Record that ``effect`` is gone from the host; idempotent."""
        with self._transaction() as db:
            db.execute("DELETE FROM ledger WHERE vm_id = ? AND effect = ?", (vm_id, effect))

    def ledger(self) -> list[LedgerRow]:
        """All rows, by VM."""
        rows = self._db.execute("SELECT vm_id, effect, done FROM ledger ORDER BY vm_id, created_at")
        return [LedgerRow(vm_id, effect, bool(done)) for vm_id, effect, done in rows]


def _operation(row: _Row, stages: Sequence[StageRecord]) -> OperationRecord:
    return OperationRecord(
        *row[:4],
        OperationState(row[4]),
        *row[5:7],
        stages=tuple(stages),
        error=msgspec.json.decode(row[7], type=ErrorRecord) if row[7] else None,
    )


def _error_text(error: ErrorRecord | None) -> str | None:
    return None if error is None else _dump(error)


def _taken(name: str, error: sqlite3.IntegrityError) -> RefusedError:
    if "vms.name" in str(error):
        return RefusedError(
            f"VM name {name!r} is taken", hint=f"choose another name, or: banger vm delete {name}"
        )
    return RefusedError(
        f"VM {name!r} clashes with another", detail=str(error), hint="banger vm list"
    )
