"""The audit log: one JSON line a request, a refused connection or a start; nothing of it can be changed by who calls."""

from __future__ import annotations

import json
import os
from pathlib import Path

from banger.helper.policy import Caller
from banger.model import clock

MAX_BYTES = 4 << 20
_MAX_TEXT = 300


class AuditLog:
    """Appends to ``path``; beyond `MAX_BYTES` it goes on in a new file and keeps one old one (``.1``)."""

    def __init__(self, path: Path, *, max_bytes: int = MAX_BYTES) -> None:
        self._path = path
        self._max_bytes = max_bytes

    def note(
        self, what: str, caller: Caller | None = None, **facts: str | float | bool | None
    ) -> None:
        """Write one line: ``what`` was asked, by whom, and what came of it."""
        line: dict[str, object] = {"at": clock.now(), "what": what[:_MAX_TEXT]}
        if caller is not None:
            line |= {"uid": caller.uid, "pid": caller.pid}
        line |= {k: v[:_MAX_TEXT] if isinstance(v, str) else v for k, v in facts.items()}
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(self._path, flags, 0o600)
        try:
            os.write(descriptor, json.dumps(line).encode() + b"\n")
            full = os.fstat(descriptor).st_size > self._max_bytes
        finally:
            os.close(descriptor)
        if full:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
