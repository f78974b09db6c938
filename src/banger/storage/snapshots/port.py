"""The port of snapshot devices: who makes them for the driver ``dm-snapshot``. Root's daemon does it itself, another one asks banger-helper.

A snapshot is known by a key, not by a name: which installation (state directory) it is of, and which of its VMs.
"""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from banger.host.dm import SnapshotStatus
from banger.host.probe import Answer
from banger.model.machine import VmPaths

INSTALLATION_DIGITS: Final = 12
THROUGH_HELPER: Final = "banger-helper"
"""What `Snapshots.available` finds where a helper makes them."""


@dataclass(frozen=True, slots=True)
class SnapshotKey:
    """Which VM's: both parts are 12 hex digits."""

    installation: str
    vm_id: str

    @classmethod
    def of(cls, paths: VmPaths) -> SnapshotKey:
        """That of the VM with these paths."""
        return cls(installation(paths.state.parent), paths.state.name)


def installation(vms_dir: Path) -> str:
    """What the snapshots of the VMs in ``vms_dir`` are known by, and no other installation's."""
    return hashlib.sha256(os.fsencode(vms_dir.resolve())).hexdigest()[:INSTALLATION_DIGITS]


class Snapshots(Protocol):
    """Snapshot devices on this host."""

    async def available(self) -> Answer:
        """Whether there can be any; ``found`` says who makes them."""
        ...

    async def open(self, key: SnapshotKey, image: Path, store: Path, size_bytes: int) -> Path:
        """A block device of ``size_bytes``: ``image`` with zeros behind it, what changes in ``store``. There is none of this key (see
        `close`). On failure nothing is left.
        """
        ...

    async def close(self, key: SnapshotKey) -> SnapshotStatus | None:
        """Remove it; how full its store was, None if there was none. Idempotent."""
        ...

    async def statuses(self, of: str) -> dict[str, SnapshotStatus]:
        """How full the stores of an installation's snapshots are, by VM."""
        ...

    async def adopt_growth(self, key: SnapshotKey, store: Path) -> bool:
        """Make use of what ``store`` has grown by; whether there was such a snapshot."""
        ...

    async def there(self, of: str) -> frozenset[str]:
        """The VMs of an installation that have one; none where nobody answers."""
        ...

    async def sweep(self, of: str, running: frozenset[str]) -> list[str]:
        """Remove those of an installation whose VM is not ``running``; sentences about it."""
        ...
