"""States as earlier releases left them: one SQL file a schema, of which the tables come from the migrations and the rows from what was written then."""

import sqlite3
from pathlib import Path

from banger.store.database import migrate, migrations

VERSIONS = [number for number, _ in migrations()]
"""Every schema that there ever was; each needs its rows here."""


def rows(version):
    """The INSERTs of that time."""
    return Path(__file__).with_name(f"{version:04}.sql").read_text()


def write(path, version):
    """The database ``path`` as a banger of schema ``version`` left it."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    migrate(connection, path, upto=version)
    connection.executescript(rows(version))
    assert connection.execute("PRAGMA user_version").fetchone() == (version,)
    connection.close()


def dump(path):
    """All that is in a database, as text."""
    connection = sqlite3.connect(path)
    try:
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        return [f"version {version}", *connection.iterdump()]
    finally:
        connection.close()
