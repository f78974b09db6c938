"""What `SnapshotService` asks of the device mapper: `banger.host.dm` is one, and tests have another where the kernel has none."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from banger.host.dm import Mapping, SnapshotStatus


class Mapper(Protocol):
    """See the functions of `banger.host.dm`."""

    def is_there(self) -> bool:
        """Whether we may use it."""
        ...

    async def mappings(self) -> list[Mapping]:
        """All that are there."""
        ...

    async def statuses(self) -> dict[str, SnapshotStatus]:
        """Of all snapshots, by name."""
        ...

    async def table(self, name: str) -> str:
        """What a mapping is made of, as the kernel has it."""
        ...

    async def create(self, name: str, uuid: str, lines: str, *, read_only: bool = False) -> Path:
        """Make a mapping; its block device."""
        ...

    async def remove(self, uuid: str, *, timeout_s: float) -> None:
        """Remove it; one that is gone is success, one that stays busy CommandFailedError."""
        ...

    def below(self, mapping: Mapping) -> list[Path]:
        """The devices that it is made of."""
        ...

    def give(self, mapping: Mapping, uid: int) -> None:
        """Its node belongs to ``uid`` alone."""
        ...

    def take_back(self, mapping: Mapping) -> None:
        """Its node is root's again; idempotent."""
        ...
