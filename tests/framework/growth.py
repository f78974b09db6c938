"""What a process must not use more of the longer it runs, and how much of it a cycle costs."""

import asyncio
import os
import sqlite3
from contextlib import closing
from dataclasses import astuple, dataclass, fields
from pathlib import Path

HISTORY = ("operations", "stages")
PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True)
class Footprint:
    """At one moment: resident KiB, descriptors, threads, tasks of the loop (0 of another process), rows of the database but for its history,
    those of its history (operations and stages, of which the newest thousand operations are kept), files.
    """

    rss_kib: float
    descriptors: float
    threads: float
    tasks: float
    rows: float
    history: float
    files: float


def footprint(directory, database, pid="self"):
    """Of a process whose files lie below ``directory``."""
    rss_kib = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * PAGE_BYTES / 1024
    return Footprint(
        rss_kib,
        len(os.listdir(f"/proc/{pid}/fd")),
        len(os.listdir(f"/proc/{pid}/task")),
        len(asyncio.all_tasks()) if pid == "self" else 0,
        *rows(database),
        sum(len(names) + len(folders) for _, folders, names in os.walk(directory)),
    )


def rows(database):
    """Of all tables but the history's together, and of these."""
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")
        counts = {
            name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0]
            for (name,) in tables.fetchall()
        }
    kept = sum(counts.pop(name) for name in HISTORY)
    return sum(counts.values()), kept


def slopes(samples):
    """By name: growth a cycle, by least squares over ``samples``, pairs of cycles done and a `Footprint`."""
    count = len(samples)
    mean_x = sum(done for done, _ in samples) / count
    spread = sum((done - mean_x) ** 2 for done, _ in samples)
    found = {}
    for number, field in enumerate(fields(Footprint)):
        values = [astuple(print_)[number] for _, print_ in samples]
        mean_y = sum(values) / count
        shared = sum(
            (done - mean_x) * (value - mean_y)
            for (done, _), value in zip(samples, values, strict=True)
        )
        found[field.name] = round(shared / spread, 4)
    return found
