"""Print the database's schema, for docs/reference/schema.sql."""

import sqlite3
import sys
from pathlib import Path

from banger.store.database import describe_schema, migrate

connection = sqlite3.connect(":memory:", isolation_level=None)
migrate(connection, Path(":memory:"))
sys.stdout.write(describe_schema(connection))
