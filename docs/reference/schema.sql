CREATE TABLE leases (
    vm_id TEXT PRIMARY KEY REFERENCES vms (id) ON DELETE CASCADE,
    idx INTEGER NOT NULL UNIQUE,
    lease_json TEXT NOT NULL
) STRICT;
CREATE TABLE ledger (
    vm_id TEXT NOT NULL,
    effect TEXT NOT NULL,
    done INTEGER NOT NULL CHECK (done IN (0, 1)),
    created_at TEXT NOT NULL,
    PRIMARY KEY (vm_id, effect)
) STRICT, WITHOUT ROWID;
CREATE TABLE operations (
    id TEXT PRIMARY KEY,
    seq INTEGER NOT NULL UNIQUE,
    kind TEXT NOT NULL,
    target TEXT NOT NULL,
    target_name TEXT NOT NULL,
    state TEXT NOT NULL,
    created_at TEXT NOT NULL,
    duration_ms REAL,
    error_json TEXT
) STRICT;
CREATE INDEX operations_by_state ON operations (state);
CREATE TABLE stages (
    operation_id TEXT NOT NULL REFERENCES operations (id) ON DELETE CASCADE,
    seq INTEGER NOT NULL,
    stage_json TEXT NOT NULL,
    PRIMARY KEY (operation_id, seq)
) STRICT, WITHOUT ROWID;
CREATE TABLE vms (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    state TEXT NOT NULL,
    created_at TEXT NOT NULL,
    image_id TEXT NOT NULL,
    record_json TEXT NOT NULL
) STRICT;
PRAGMA user_version = 1;
