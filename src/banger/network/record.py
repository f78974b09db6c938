"""Where a network keeps its things, and what a daemon writes down about it for the next daemon."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import msgspec

from banger.api.malformed import NOT_JSON
from banger.host import fs
from banger.model.process import ProcessIdentity
from banger.network.holder import PROTOCOL
from banger.network.plan import NetworkPlan

OLDEST_PROTOCOL = 1
_MAX_BYTES = 1 << 16


@dataclass(frozen=True, slots=True)
class Files:
    """``runtime``: the daemon's runtime directory, whose ``name`` is ours; ``logs``: where the two programs' last words go."""

    runtime: Path
    logs: Path
    name: str = "net"

    @property
    def directory(self) -> Path:
        """Ours, private."""
        return self.runtime / self.name

    @property
    def _suffix(self) -> str:
        return self.name.removeprefix("net")

    @property
    def control(self) -> Path:
        """The holder's socket."""
        return self.directory / "holder.sock"

    @property
    def record(self) -> Path:
        """What the next daemon reads."""
        return self.directory / "network.json"

    @property
    def holder_log(self) -> Path:
        """The holder's stderr."""
        return self.logs / f"holder{self._suffix}.log"

    @property
    def uplink_log(self) -> Path:
        """What the uplink's program says."""
        return self.logs / f"uplink{self._suffix}.log"

    def forget(self) -> None:
        """Remove socket and record; idempotent."""
        self.control.unlink(missing_ok=True)
        self.record.unlink(missing_ok=True)


class NetworkRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Who keeps the namespace, who is its uplink, and by which plan it was laid out; ``slot`` of a routed uplink, which has no process.

    It is not ``whole`` while its daemon makes it: nobody was attached yet, so the next daemon ends it.
    """

    holder: ProcessIdentity
    plan: NetworkPlan
    uplink_kind: str
    uplink: ProcessIdentity | None = None
    slot: int = 0
    protocol: int = PROTOCOL
    whole: bool = True

    def fits(self, plan: NetworkPlan, kind: str) -> bool:
        """Whether this daemon would lay a network out so, and speaks with its holder; an older holder lacks a request or two."""
        spoken = OLDEST_PROTOCOL <= self.protocol <= PROTOCOL
        return spoken and (self.plan, self.uplink_kind) == (plan, kind)


def write_record(path: Path, record: NetworkRecord) -> None:
    """Replace the record."""
    fs.write_atomic(path, msgspec.json.encode(record))


def read_record(path: Path) -> NetworkRecord | None:
    """The record; None if there is none or no sense in it."""
    try:
        with path.open("rb") as file:
            return msgspec.json.decode(file.read(_MAX_BYTES), type=NetworkRecord)
    except (OSError, *NOT_JSON):
        return None
