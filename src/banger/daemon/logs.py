"""The daemon's log: one JSON object a line on stderr, which the CLI sends to ``bangerd.log`` and systemd to the journal."""

from __future__ import annotations

import json
import logging

from banger.host.bound import OPERATION, VM
from banger.model import clock
from banger.model.compat import override


class JsonLines(logging.Formatter):
    """``{"time","level","logger","message"[,"vm"][,"operation"][,"exception"]}``: the ids of what the line belongs to."""

    @override
    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        line = {
            "time": clock.now(),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        line |= {
            key: bound.get() for key, bound in (("vm", VM), ("operation", OPERATION)) if bound.get()
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


def set_up(level: str) -> None:
    """Send all logging to stderr as JSON lines, from ``level`` (debug, info, warning, error) on."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("qemu.qmp").setLevel(logging.ERROR)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
