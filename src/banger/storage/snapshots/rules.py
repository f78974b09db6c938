"""What banger-helper gives to whom of snapshots: pure. Numbers that a caller sends are bounded here, and names are made of slots."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from banger.host import dm
from banger.model.errors import InvalidInputError, RefusedError
from banger.model.units import GIB, format_size
from banger.storage import disk_format

QUOTA: Final = 64  # snapshots of a user
QUOTA_BYTES: Final = 512 * GIB
"""Of all disks of a user together. A disk that its guest has changed altogether costs the kernel 32 bytes of memory for each 4 KiB."""
MAX_SLOTS: Final = 1024
MAX_DISK_BYTES: Final = 1024 * GIB
NUMBER_BITS: Final = 48
_STEM: Final = "banger-s"
_BASE: Final = "-base"


@dataclass(frozen=True, slots=True)
class Attached:
    """A snapshot as its owner is told of it. ``installation`` and ``vm`` are the owner's own numbers; sizes are of the store."""

    slot: int
    uid: int
    installation: int
    vm: int
    device: str = ""
    disk_bytes: int = 0
    used_bytes: int = 0
    size_bytes: int = 0
    broken: str = ""


@dataclass(frozen=True, slots=True)
class Names:
    """Names and uuids of the mappings of slot ``number``; ``token`` is the ledger's, and tells ours from somebody else's."""

    number: int
    token: str

    @property
    def disk(self) -> str:
        """The snapshot."""
        return f"{_STEM}{self.number}"

    @property
    def base(self) -> str:
        """The image with zeros behind it."""
        return self.disk + _BASE

    @property
    def disk_uuid(self) -> str:
        """Of the snapshot."""
        return f"{uuid_stem(self.token)}{self.number}"

    @property
    def base_uuid(self) -> str:
        """Of what it lies over."""
        return self.disk_uuid + _BASE


def uuid_stem(token: str) -> str:
    """What the uuids of our mappings begin with."""
    return f"BANGER-HELPER-{token}-"


def slot_of(mapping: dm.Mapping, token: str) -> int | None:
    """The slot of a mapping by its uuid; None if it is not ours."""
    text = mapping.uuid.removeprefix(uuid_stem(token)).removesuffix(_BASE)
    ours = mapping.uuid.startswith(uuid_stem(token)) and text.isascii() and text.isdigit()
    return int(text) if ours else None


def named_so(mappings: Iterable[dm.Mapping]) -> set[int]:
    """Slots whose names somebody has on this host, us or not."""
    found = set()
    for mapping in mappings:
        text = mapping.name.removesuffix(_BASE).removeprefix(_STEM)
        if mapping.name.startswith(_STEM) and text.isascii() and text.isdigit():
            found.add(int(text))
    return found


def check_numbers(installation: int, vm: int, sectors: int) -> None:
    """InvalidInputError unless they are what they are called."""
    for name, number in (("installation", installation), ("vm", vm)):
        if not 0 <= number < 1 << NUMBER_BITS:
            raise InvalidInputError(
                f"{name} {number} is out of range", detail=f"it has {NUMBER_BITS} bits",
                hint="update banger and banger-helper to the same release",
            )  # fmt: skip
    if not 0 < sectors * dm.SECTOR_BYTES <= MAX_DISK_BYTES:
        raise InvalidInputError(
            f"a disk of {sectors} sectors is out of range",
            detail=f"it may have up to {format_size(MAX_DISK_BYTES)}",
            hint="choose a smaller --disk-size",
        )


def check_files(image_bytes: int, store_bytes: int, head: bytes, sectors: int) -> None:
    """InvalidInputError unless the image fits into the disk and the store is one of ours, by its size and first bytes.

    The kernel takes a chunk's size from the store rather than from us; small ones would cost it eight times the memory.
    """
    if not 0 < image_bytes // dm.SECTOR_BYTES <= sectors:
        raise InvalidInputError(
            "the image does not fit into the disk",
            detail=f"it has {format_size(image_bytes)}, the disk {sectors} sectors",
            hint="choose a larger --disk-size",
        )
    found = disk_format.read_snapshot(head)
    chunk = dm.CHUNK_SECTORS * dm.SECTOR_BYTES
    if found is None or store_bytes < chunk or found.chunk_sectors not in {0, dm.CHUNK_SECTORS}:
        raise InvalidInputError(
            "the store is none of a snapshot",
            detail=f"it has {store_bytes} bytes, and begins with {head[:16].hex()}",
            hint="banger vm delete the VM, and create it again",
        )


def check_table(table: str) -> None:
    """RefusedError if the kernel has another chunk size than we said: the store was changed while we looked."""
    if table.split()[-2:] != ["P", str(dm.CHUNK_SECTORS)]:
        raise RefusedError(
            "the store of the snapshot was changed meanwhile",
            detail=f"the kernel's table is {table[:200]!r}",
            hint="try again, with one daemon",
        )


@dataclass(frozen=True, slots=True)
class Quota:
    """What a user may have: how many snapshots, and how large their disks together."""

    count: int = QUOTA
    disk_bytes: int = QUOTA_BYTES

    def check(self, uid: int, disks_bytes: Iterable[int], another_bytes: int) -> None:
        """RefusedError if ``another_bytes`` beside those is too much for ``uid``."""
        there = list(disks_bytes)
        hint = "stop a VM that you do not need: banger vm list"
        if len(there) >= self.count:
            raise RefusedError(
                f"user {uid} has {self.count} snapshots already",
                detail="that is the quota of a user",
                hint=hint,
            )
        if sum(there) + another_bytes > self.disk_bytes:
            raise RefusedError(
                f"user {uid}'s snapshots would be disks of {format_size(sum(there) + another_bytes)}",
                detail=f"the quota of a user is {format_size(self.disk_bytes)}",
                hint=hint,
            )


def free_slot(taken: Iterable[int]) -> int:
    """The lowest number that is not taken; RefusedError if there is none."""
    used = set(taken)
    for number in range(1, MAX_SLOTS + 1):
        if number not in used:
            return number
    raise RefusedError(
        "no snapshot is free on this host",
        detail=f"all {MAX_SLOTS} are in use",
        hint="sudo dmsetup ls",
    )
