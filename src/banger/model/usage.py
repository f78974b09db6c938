"""What takes how much of the host's disks, as values."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

DiskKind = Literal["vm", "image", "other"]
LeftoverKind = Literal["build", "vm", "database", "image", "download", "cache"]


class Owner(NamedTuple):
    """What a directory belongs to; ``other``: to nothing that has an id."""

    kind: DiskKind
    id: str
    name: str


@dataclass(frozen=True, slots=True)
class DiskUse:
    """What one thing takes. ``shared_bytes`` are blocks that other files have too; None where the
    file system does not say, or there was no time to ask.
    """

    owner: Owner
    logical_bytes: int
    allocated_bytes: int
    shared_bytes: int | None

    @property
    def own_bytes(self) -> int | None:
        """What becomes free at least when it is removed."""
        return None if self.shared_bytes is None else self.allocated_bytes - self.shared_bytes


@dataclass(frozen=True, slots=True)
class FileSystem:
    """A file system that holds something of it; ``free_bytes`` is what an ordinary user may still write."""

    path: str
    size_bytes: int
    free_bytes: int


@dataclass(frozen=True, slots=True)
class DiskUsage:
    """All of a state directory. ``used_bytes`` counts shared blocks once; ``exact`` is false if some blocks may be counted twice."""

    items: tuple[DiskUse, ...]
    used_bytes: int
    exact: bool
    file_systems: tuple[FileSystem, ...]


@dataclass(frozen=True, slots=True)
class Leftover:
    """Something that nothing uses."""

    kind: LeftoverKind
    path: Path
    size_bytes: int
    title: str = ""

    @property
    def name(self) -> str:
        """What people know it by."""
        return self.title or self.path.name
