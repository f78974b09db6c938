"""What banger reads of disks itself: the headers of qcow2, ext4 and snapshot stores. Pure functions of the first bytes."""

from __future__ import annotations

import struct
from dataclasses import dataclass

QCOW2_HEAD_BYTES = (
    64 * 1024
)  # header, extensions and the backing file's name lie in the first cluster
EXT4_HEAD_BYTES = 2048
_QCOW2 = struct.Struct(">4sIQIIQ")  # magic, version, name's offset and length, cluster bits, size
_QCOW2_MAGIC, _QCOW2_FEATURES, _DIRTY, _CORRUPT = b"QFI\xfb", 72, 1, 2
SNAPSHOT_HEAD_BYTES = 16
_SNAPSHOT = struct.Struct("<4I")  # magic, valid, version, sectors a chunk
_SNAPSHOT_MAGIC = 0x70416E53  # "SnAp"
_EXT4_SUPERBLOCK, _EXT4_MAGIC = 1024, 0xEF53


@dataclass(frozen=True, slots=True)
class Qcow2Head:
    """``size_bytes`` is the virtual size, ``backing`` the backing file's name as written, ``corrupt`` QEMU's own mark. ``foreign``: a reader needs
    what banger's disks never have, such as an external data file.
    """

    size_bytes: int
    backing: bytes
    corrupt: bool
    foreign: bool = False


def read_qcow2(head: bytes) -> Qcow2Head | None:
    """The header in the first `QCOW2_HEAD_BYTES` of a file; None if it is no qcow2 (docs/interop/qcow2.txt of QEMU)."""
    if len(head) < _QCOW2.size:
        return None
    magic, version, offset, length, _, size_bytes = _QCOW2.unpack_from(head)
    if magic != _QCOW2_MAGIC or version not in {2, 3}:
        return None
    features = head[_QCOW2_FEATURES : _QCOW2_FEATURES + 8] if version == 3 else b""
    needed = int.from_bytes(features, "big")
    backing = head[offset : offset + length] if offset else b""
    foreign = bool(needed & ~(_DIRTY | _CORRUPT))
    return Qcow2Head(size_bytes, backing, bool(needed & _CORRUPT), foreign)


def read_ext4_bytes(head: bytes) -> int | None:
    """Size in bytes of the ext4 whose first `EXT4_HEAD_BYTES` are ``head``; None if it is none.

    Kernel's struct ext4_super_block: s_blocks_count_lo at 0x4, s_log_block_size 0x18, s_magic 0x38, s_blocks_count_hi 0x150.
    """
    block = head[_EXT4_SUPERBLOCK:]
    if len(block) < 1024 or int.from_bytes(block[0x38:0x3A], "little") != _EXT4_MAGIC:
        return None
    low, log, high = (struct.unpack_from("<I", block, at)[0] for at in (0x4, 0x18, 0x150))
    return int((high << 32 | low) << (10 + log)) if log <= 6 else None


@dataclass(frozen=True, slots=True)
class SnapshotHead:
    """``valid`` is what the kernel takes away when it gives a snapshot up; ``chunk_sectors`` is 0 before its first use."""

    valid: bool
    chunk_sectors: int


def read_snapshot(head: bytes) -> SnapshotHead | None:
    """The header in the first `SNAPSHOT_HEAD_BYTES` of a store of dm-snapshot; None if it is none (kernel's dm-snap-persistent.c).

    A store of zeros is one that was never used.
    """
    if len(head) < _SNAPSHOT.size:
        return None
    if not any(head):
        return SnapshotHead(valid=True, chunk_sectors=0)
    magic, valid, version, chunk_sectors = _SNAPSHOT.unpack_from(head)
    if magic != _SNAPSHOT_MAGIC or version != 1 or not chunk_sectors:
        return None
    return SnapshotHead(bool(valid), chunk_sectors)
