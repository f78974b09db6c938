"""The SQLite file: opened, checked and migrated.

WAL with one writer (the daemon, which holds the state directory's lock). ``PRAGMA user_version`` is the schema's version.
A newer schema is refused untouched. A damaged file is kept aside as ``banger.db.corrupt-<time>`` and a new one is begun; the
caller gets the path to say so and rebuilds VMs from their directories.
"""

from __future__ import annotations

import errno
import logging
import os
import sqlite3
from contextlib import suppress
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

from banger.model import clock
from banger.model.errors import HostLacksError, RefusedError

log = logging.getLogger(__name__)
_DAMAGE = ("malformed", "not a database", "corrupt", "disk image")


@dataclass(frozen=True, slots=True)
class Opened:
    """A usable connection, and where a damaged predecessor was put (None: there was none)."""

    connection: sqlite3.Connection
    kept_aside: Path | None


def migrations() -> list[tuple[int, str]]:
    """Version and SQL of every migration, in order."""
    files = (
        f for f in resources.files("banger.store.migrations").iterdir() if f.name.endswith(".sql")
    )
    return sorted((int(f.name[:4]), f.read_text()) for f in files)


def open_database(path: Path) -> Opened:
    """Open ``path``, creating or upgrading it. HostLacksError when the directory cannot be written."""
    try:
        return Opened(_open(path), None)
    except sqlite3.DatabaseError as error:
        if not any(word in str(error) for word in _DAMAGE):
            raise _unusable(path, error) from error
        log.warning("database %s is damaged: %s", path, error)
    aside = path.with_name(f"{path.name}.corrupt-{clock.now().replace(':', '')}")
    for suffix in ("", "-wal", "-shm"):
        with suppress(FileNotFoundError):
            Path(f"{path}{suffix}").rename(f"{aside}{suffix}")
    return Opened(_open(path), aside)


def _unusable(path: Path, error: sqlite3.Error) -> HostLacksError:
    return HostLacksError(
        f"database {path} cannot be used",
        detail=str(error),
        hint=f"check that {path.parent} is writable and has free space: df -h {path.parent}",
    )


def _open(path: Path) -> sqlite3.Connection:
    with suppress(
        OSError
    ):  # SQLite says in its own words what is wrong; its -wal and -shm get the mode of the file
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
        path.chmod(0o600)
    connection = sqlite3.connect(path, isolation_level=None, timeout=5.0)
    try:
        _refuse_newer(connection, path)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA foreign_keys = ON")
        (verdict,) = connection.execute("PRAGMA quick_check(1)").fetchone()
        if verdict != "ok":
            raise sqlite3.DatabaseError(  # noqa: TRY301  the caller sorts it
                f"database disk image is malformed: {verdict}"
            )
        migrate(connection, path)
    except BaseException:
        connection.close()
        raise
    return connection


def _refuse_newer(connection: sqlite3.Connection, path: Path) -> int:
    """The schema's version; RefusedError, before anything is written, if it is from the future."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    newest = migrations()[-1][0]
    if version > newest:
        raise RefusedError(
            f"database {path} is of a newer banger",
            detail=f"its schema has version {version}, this banger knows {newest}",
            hint="use the newer banger, or another BANGER_STATE_DIR",
        )
    return int(version)


def migrate(connection: sqlite3.Connection, path: Path, *, upto: int | None = None) -> None:
    """Bring the schema up to date, each step in a transaction of its own; RefusedError for one from the future."""
    version = _refuse_newer(connection, path)
    for number, sql in migrations():
        if number > version and (upto is None or number <= upto):
            connection.executescript(
                f"BEGIN IMMEDIATE; {sql}\nPRAGMA user_version = {number}; COMMIT;"
            )


def describe_schema(connection: sqlite3.Connection) -> str:
    """Every table and index as SQLite has it, and the version: what docs/reference/schema.sql holds."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    rows = connection.execute("SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name")
    return "".join([*(f"{sql};\n" for (sql,) in rows), f"PRAGMA user_version = {version};\n"])


def is_disk_full(error: sqlite3.Error) -> bool:
    """Whether SQLite failed because the disk is full."""
    return getattr(error, "sqlite_errorname", "") == "SQLITE_FULL" or errno.errorcode[
        errno.ENOSPC
    ] in str(error)
