"""How much of the disks VMs and images take, exactly: shared blocks are told from own ones, and counted once in the sum.

It reads metadata only, never a disk's content, and stops asking for blocks at a deadline: then the sums are upper bounds, and say so.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from banger.host import extents, fs
from banger.host.extents import Span
from banger.model.clock import Deadline
from banger.model.usage import DiskUsage, DiskUse, FileSystem, Owner

DEADLINE_S = 5.0
_SMALL_BYTES = 64 * 1024  # sockets, tokens, logs: nobody shares their blocks

Owners = Mapping[Path, Owner]
"""What directories belong to."""


@dataclass(slots=True)
class _Sum:
    """What one owner has; ``spans`` are shared blocks by device."""

    logical_bytes: int = 0
    allocated_bytes: int = 0
    shared_bytes: int = 0
    known: bool = True


@dataclass(slots=True)
class _Scan:
    deadline: Deadline
    sums: dict[Owner, _Sum] = field(default_factory=dict)
    spans: dict[int, list[Span]] = field(default_factory=dict)
    own_bytes: int = 0
    seen: set[tuple[int, int]] = field(default_factory=set)
    exact: bool = True

    def add(self, owner: Owner, path: str, found: os.stat_result) -> None:
        """Count one file for its owner."""
        total = self.sums.setdefault(owner, _Sum())
        allocated_bytes = found.st_blocks * 512
        total.logical_bytes += found.st_size
        total.allocated_bytes += allocated_bytes
        linked = found.st_nlink > 1
        if linked:  # one file by several names: like shared blocks
            total.shared_bytes += allocated_bytes
            again = (found.st_dev, found.st_ino) in self.seen
            self.seen.add((found.st_dev, found.st_ino))
            if again:
                return
        shared = self._shared(path, allocated_bytes)
        if shared is None:
            total.known, self.exact = False, False
            self.own_bytes += allocated_bytes
            return
        device, spans = shared
        shared_bytes = min(allocated_bytes, extents.covered_bytes(spans))
        self.spans.setdefault(device, []).extend(spans)
        self.own_bytes += allocated_bytes - shared_bytes
        total.shared_bytes += 0 if linked else shared_bytes

    def _shared(self, path: str, allocated_bytes: int) -> tuple[int, list[Span]] | None:
        """Device and places of the blocks that other files have too; None if they cannot be told."""
        if allocated_bytes <= _SMALL_BYTES:
            return 0, []
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        except OSError:
            return None
        try:
            found = extents.of(descriptor, lambda: self.deadline.passed)
            device = extents.device_of(descriptor)
        except OSError:
            return None
        finally:
            os.close(descriptor)
        return None if found is None else (device, [one.span for one in found if one.shared])

    @property
    def used_bytes(self) -> int:
        """All of it, shared blocks once."""
        return self.own_bytes + sum(map(extents.covered_bytes, self.spans.values()))


def measure(state_dir: Path, owners: Owners, *, deadline_s: float = DEADLINE_S) -> DiskUsage:
    """All of ``state_dir``: what lies in a directory of ``owners`` is theirs, the rest has kind ``other`` and its place as name.

    A thing that takes nothing is listed too.
    """
    scan = _Scan(Deadline.after(deadline_s))
    for owner in owners.values():
        scan.sums[owner] = _Sum()
    for owner, path, found in _files(state_dir, owners):
        scan.add(owner, path, found)
    items = [
        DiskUse(
            owner,
            total.logical_bytes,
            total.allocated_bytes,
            min(total.shared_bytes, total.allocated_bytes) if total.known else None,
        )
        for owner, total in scan.sums.items()
    ]
    places = (state_dir, state_dir / "images", state_dir / "vms")
    return DiskUsage(tuple(items), scan.used_bytes, scan.exact, tuple(_file_systems(places)))


def _files(state_dir: Path, owners: Owners) -> Iterator[tuple[Owner, str, os.stat_result]]:
    """Every file below ``state_dir`` with its owner; links are not followed but those of images and VMs as a whole, and what vanishes meanwhile is left out."""
    elsewhere = [path for path in (state_dir / "images", state_dir / "vms") if path.is_symlink()]
    walks = (walk for top in (state_dir, *elsewhere) for walk in os.walk(top))
    for directory, _, files in walks:
        owner = _owner(state_dir, Path(directory), owners)
        for name in files:
            path = os.path.join(directory, name)  # noqa: PTH118  a Path for each file costs more than its stat
            with suppress(OSError):
                found = os.lstat(path)
                if stat.S_ISREG(found.st_mode):
                    yield owner or Owner("other", "", name), path, found


def _owner(state_dir: Path, directory: Path, owners: Owners) -> Owner | None:
    """Whose ``directory`` is; None for files that lie in ``state_dir`` itself."""
    for path in (directory, *directory.parents):
        if path in owners:
            return owners[path]
        if path == state_dir:
            break
    parts = directory.relative_to(state_dir).parts
    if not parts:
        return None
    deep = 2 if parts[0] in {"images", "vms"} else 1
    return Owner("other", "", "/".join(parts[:deep]))


def _file_systems(places: tuple[Path, ...]) -> Iterator[FileSystem]:
    seen = set()
    for path in places:
        if path.is_dir() and (device := path.stat().st_dev) not in seen:
            seen.add(device)
            status = os.statvfs(path)
            yield FileSystem(str(path), status.f_blocks * status.f_frsize, fs.free_bytes(path))
