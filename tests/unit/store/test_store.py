"""The store keeps VMs, operations and the ledger through restarts, damage and upgrades."""

import contextlib
import sqlite3
from dataclasses import replace
from pathlib import Path

import pytest

from banger.model.errors import HostLacksError, RefusedError
from banger.model.lease import Lease
from banger.model.process import ProcessIdentity
from banger.model.record import ErrorRecord, OperationRecord, RunRecord, StageRecord, VmRecord
from banger.model.spec import Forward, VmSpec
from banger.model.state import OperationState, VmState
from banger.store.database import describe_schema, migrate, migrations, open_database
from banger.store.store import KEEP_OPERATIONS, Store


def vm(vm_id="a" * 12, name="one", **changes):
    return VmRecord(
        vm_id, name, VmState.STOPPED, "2026-01-01T00:00:00.000Z", "f" * 12, VmSpec()
    ).but(**changes)


def lease(vm_id="a" * 12, index=0):
    return Lease(
        vm_id,
        index,
        f"02:00:00:00:00:{index:02x}",
        f"10.0.2.{index + 10}",
        24,
        "10.0.2.2",
        "10.0.2.3",
    )


def operation(op_id="1" * 12, state=OperationState.RUNNING):
    return OperationRecord(op_id, "vm.create", "a" * 12, "one", state, "2026-01-01T00:00:00.000Z")


@pytest.fixture
def store(tmp_path):
    store = Store(tmp_path / "banger.db")
    yield store
    store.close()


def test_a_vm_comes_back_as_it_was_stored(store, tmp_path):
    run = RunRecord(
        ProcessIdentity(1, 2, "boot"),
        "qemu",
        "tcg",
        "user",
        "2026-01-01T00:00:00.000Z",
        "10.0.2.10",
    )
    record = vm(
        forwards=(Forward(8080, 80),), run=run, last_error=ErrorRecord("failure", "x", "y", "z")
    )
    store.insert_vm(record, lease())
    store.close()
    again = Store(tmp_path / "banger.db")
    assert again.vms() == [record]
    assert again.leases() == [lease()]
    again.close()


def test_a_second_vm_of_the_same_name_is_refused_and_leaves_no_trace(store):
    store.insert_vm(vm(), lease())
    with pytest.raises(RefusedError, match="'one' is taken"):
        store.insert_vm(vm("b" * 12), lease("b" * 12, 1))
    assert [lease.index for lease in store.leases()] == [0]


def test_a_lease_gets_other_addresses_and_keeps_its_number(store):
    store.insert_vm(vm(), lease())
    moved = replace(lease(), ip="10.9.0.16", gateway="10.9.0.1", dns="10.9.0.2")
    store.update_lease(moved)
    store.update_lease(replace(moved, vm_id="b" * 12, ip="10.9.0.99"))  # nobody's
    assert store.leases() == [moved]


def test_a_lease_cannot_be_given_twice(store):
    store.insert_vm(vm(), lease())
    with pytest.raises(RefusedError):
        store.insert_vm(vm("b" * 12, "two"), lease("b" * 12, 0))
    assert len(store.vms()) == 1


def test_renaming_to_a_taken_name_is_refused(store):
    store.insert_vm(vm(), lease())
    store.insert_vm(vm("b" * 12, "two"), lease("b" * 12, 1))
    with pytest.raises(RefusedError, match="taken"):
        store.update_vm(vm("b" * 12, "one"))


def test_deleting_a_vm_frees_its_lease_and_is_idempotent(store):
    store.insert_vm(vm(), lease())
    store.delete_vm("a" * 12)
    store.delete_vm("a" * 12)
    assert store.vms() == []
    assert store.leases() == []


def test_operations_keep_their_stages_in_order(store):
    store.insert_operation(operation())
    first = StageRecord("validate", OperationState.SUCCEEDED, "2026-01-01T00:00:00.000Z", 1.5)
    second = StageRecord("disks", OperationState.RUNNING, "2026-01-01T00:00:00.000Z")
    store.put_stage("1" * 12, 0, first)
    store.put_stage("1" * 12, 1, second)
    found = store.operation("1111")
    assert found is not None
    assert found.stages == (first, second)
    assert store.unfinished_operations() == [found]


def test_old_finished_operations_are_dropped_but_running_ones_stay(store):
    store.insert_operation(operation("f" * 12, OperationState.RUNNING))
    for number in range(KEEP_OPERATIONS + 5):
        store.insert_operation(operation(f"{number:012x}", OperationState.SUCCEEDED))
    assert store.operation("f" * 12) is not None
    assert len(store.operations(limit=5000)) <= KEEP_OPERATIONS + 1


def test_the_ledger_knows_intended_from_done(store):
    store.intend("a" * 12, "disks")
    store.intend("a" * 12, "vmm")
    store.settle("a" * 12, "disks")
    assert {(row.effect, row.done) for row in store.ledger()} == {("disks", True), ("vmm", False)}
    store.strike("a" * 12, "disks")
    store.strike("a" * 12, "disks")
    assert [row.effect for row in store.ledger()] == ["vmm"]


SCHEMA = Path(__file__).parents[3] / "docs" / "reference" / "schema.sql"


def test_the_checked_in_schema_is_current(store):
    assert SCHEMA.read_text() == describe_schema(store._db), "run: make reference"


def test_the_database_and_what_sqlite_puts_beside_it_are_their_owners_alone(store, tmp_path):
    modes = {path.name: path.stat().st_mode & 0o777 for path in tmp_path.glob("*.db*")}
    assert len(modes) == 3
    assert set(modes.values()) == {0o600}


def test_the_file_is_in_wal_mode_and_every_table_is_strict(store, tmp_path):
    with contextlib.closing(sqlite3.connect(tmp_path / "banger.db")) as other:
        assert other.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        tables = {
            (name, strict)
            for _, name, kind, _, _, strict in other.execute("PRAGMA table_list")
            if kind == "table" and not name.startswith("sqlite_")
        }
    assert {name for name, _ in tables} >= {"vms", "leases", "operations", "stages", "ledger"}
    assert {strict for _, strict in tables} == {1}
    with pytest.raises(sqlite3.IntegrityError):
        store._db.execute("INSERT INTO leases VALUES ('a', 'no number', '')")


@pytest.mark.parametrize("old", range(len(migrations())))
def test_every_older_schema_is_upgraded_to_the_present_one(tmp_path, old):
    path = tmp_path / "banger.db"
    connection = sqlite3.connect(path, isolation_level=None)
    migrate(connection, path, upto=old)
    assert connection.execute("PRAGMA user_version").fetchone() == (old,)
    connection.close()
    store = Store(path)
    assert store.kept_aside is None
    assert describe_schema(store._db) == SCHEMA.read_text()
    store.insert_vm(vm(), lease())
    assert store.vms() == [vm()]
    store.close()


def test_a_newer_schema_is_refused_untouched(tmp_path):
    path = tmp_path / "banger.db"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA user_version = 9999")
    connection.close()
    before = path.read_bytes()
    with pytest.raises(RefusedError, match="newer banger"):
        Store(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("damage", [b"this is no database" * 100, None])
def test_a_damaged_database_is_kept_aside_and_a_new_one_begun(tmp_path, damage):
    path = tmp_path / "banger.db"
    store = Store(path)
    for number in range(200):
        store.insert_vm(vm(f"{number:012x}", f"vm-{number}"), lease(f"{number:012x}", number))
    store.close()
    if damage is None:
        content = bytearray(path.read_bytes())
        content[4096:16384] = b"\xff" * (16384 - 4096)
        path.write_bytes(content)
    else:
        path.write_bytes(damage)
    again = Store(path)
    assert again.vms() == []
    assert again.kept_aside is not None
    assert again.kept_aside.exists()
    again.close()


def test_a_directory_that_cannot_be_written_gives_a_clear_error(tmp_path):
    missing = tmp_path / "no" / "such" / "banger.db"
    with pytest.raises(HostLacksError, match="cannot be used") as caught:
        open_database(missing)
    assert "df -h" in caught.value.hint
