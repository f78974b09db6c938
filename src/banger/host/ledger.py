"""A ledger in one file: what a root process is about to do to the host, written down before it does it, and struck when it is undone.

The file is replaced as a whole, so that a reader, or the next process after a power cut, sees one state or the other.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from pathlib import Path

import msgspec

from banger.api.malformed import NOT_JSON
from banger.host import fs
from banger.host.proc import boot_id
from banger.model.errors import BangerError

_MAX_BYTES = 4 << 20


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One effect on the host: its ``kind`` and its ``key`` among that kind, for whom, and what tells it from somebody else's."""

    kind: str
    key: str
    uid: int
    boot: str
    done: bool = False
    facts: Mapping[str, int | str] = {}

    @property
    def this_boot(self) -> bool:
        """Whether it was made since the host was started; else the kernel has forgotten it."""
        return self.boot == boot_id()


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    token: str
    rows: list[Row]


class Ledger:
    """The ledger at ``path``, in a directory that only its owner may enter. ``token`` is random, made with the file: what carries it is ours."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._content = self._read()

    @property
    def token(self) -> str:
        """What the names of our things on the host carry."""
        return self._content.token

    def rows(self, kind: str) -> list[Row]:
        """All rows of a kind, as they were written."""
        return [row for row in self._content.rows if row.kind == kind]

    def intend(self, kind: str, key: str, uid: int, **facts: int | str) -> Row:
        """Write down what is about to be done, in place of an earlier row of this key."""
        row = Row(kind, key, uid, boot_id(), facts=facts)
        self._replace(row, [row])
        return row

    def done(self, row: Row, **facts: int | str) -> Row:
        """It is done; ``facts`` are added to what was known."""
        changed = msgspec.structs.replace(row, done=True, facts={**row.facts, **facts})
        self._replace(row, [changed])
        return changed

    def strike(self, row: Row) -> None:
        """It is undone; idempotent."""
        self._replace(row, [])

    def _replace(self, row: Row, new: list[Row]) -> None:
        kept = [r for r in self._content.rows if (r.kind, r.key) != (row.kind, row.key)]
        changed = _Content(self._content.token, kept + new)
        self._write(changed)
        self._content = changed

    def _write(self, content: _Content) -> None:
        fs.write_atomic(self._path, msgspec.json.encode(content))

    def _read(self) -> _Content:
        try:
            with self._path.open("rb") as file:
                return msgspec.json.decode(file.read(_MAX_BYTES), type=_Content)
        except FileNotFoundError:
            content = _Content(secrets.token_hex(8), [])
            self._write(content)
            return content
        except NOT_JSON as error:
            raise BangerError(
                f"ledger {self._path} is damaged",
                detail=str(error),
                hint=f"look at what is on the host, then move it away: mv {self._path} {self._path}.old",
            ) from error
