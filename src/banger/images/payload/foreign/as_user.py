"""Become another user and run a program: USER[:GROUP] PROGRAM [ARGUMENT…], as a container engine takes USER (names or numbers).

For roots whose tools may know neither; standard library only, and no site directory.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path


def rows(path: str) -> list[list[str]]:
    """The lines of a file as passwd(5) and group(5) have them; none if it is not there."""
    try:
        text = Path(path).read_text(errors="replace")
    except OSError:
        return []
    return [line.split(":") for line in text.splitlines()]


def find(path: str, wanted: str, fields: int) -> list[str] | None:
    """The row of the file whose name, or number in column 2, is ``wanted``."""
    for row in rows(path):
        if len(row) >= fields and wanted in (row[0], row[2]):
            return row
    return None


def number(path: str, wanted: str, fields: int) -> int:
    """The number of the user or group ``wanted``, which may be one itself."""
    row = find(path, wanted, fields)
    if row is None and not wanted.isdigit():
        sys.exit(f"banger: there is no {wanted!r} in {path}")
    return int(row[2] if row is not None else wanted)


def main() -> None:
    """Replace this program by that of the arguments."""
    user, _, group = sys.argv[1].partition(":")
    row = find("/etc/passwd", user, 7)
    uid = number("/etc/passwd", user, 7)
    if group:
        gid, others = number("/etc/group", group, 4), []
    else:
        gid = int(row[3]) if row is not None else 0
        name = row[0] if row is not None else None
        members = [r for r in rows("/etc/group") if len(r) >= 4 and name in r[3].split(",")]
        others = [int(r[2]) for r in members if r[2].isdigit()]
    os.setgroups([gid, *others])
    os.setgid(gid)
    os.setuid(uid)
    os.environ["HOME"] = row[5] if row is not None and row[5] else "/"
    try:
        os.execvp(sys.argv[2], sys.argv[2:])  # noqa: S606  argv, no shell
    except OSError as error:
        sys.exit(f"banger: {sys.argv[2]} cannot be started: {error.strerror}")


main()
