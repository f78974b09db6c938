"""Headers of qcow2 and ext4, against what the real tools write."""

import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.storage.disk_format import (
    EXT4_HEAD_BYTES,
    QCOW2_HEAD_BYTES,
    SNAPSHOT_HEAD_BYTES,
    Qcow2Head,
    SnapshotHead,
    read_ext4_bytes,
    read_qcow2,
    read_snapshot,
)


@pytest.mark.parametrize("compat", ["0.10", "1.1"])
def test_a_qcow2_header_tells_size_and_backing_file(tmp_path, compat):
    base, overlay = tmp_path / "base", tmp_path / "overlay"
    base.write_bytes(bytes(1 << 20))
    subprocess.run(
        [
            "qemu-img",
            "create",
            "-q",
            "-f",
            "qcow2",
            "-o",
            f"compat={compat}",
            "-F",
            "raw",
            "-b",
            base,
            overlay,
            "5G",
        ],
        check=True,
    )
    assert read_qcow2(overlay.read_bytes()[:QCOW2_HEAD_BYTES]) == Qcow2Head(
        5 << 30, bytes(base), corrupt=False
    )


def test_a_qcow2_without_backing_file_has_an_empty_name(tmp_path):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "disk", "1M"], check=True)
    assert read_qcow2((tmp_path / "disk").read_bytes()).backing == b""


def test_a_qcow2_that_qemu_marked_corrupt_is_told(tmp_path):
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", tmp_path / "disk", "1M"], check=True)
    data = bytearray((tmp_path / "disk").read_bytes())
    data[79] |= 2
    assert read_qcow2(bytes(data)).corrupt is True


def test_the_size_of_an_ext4_is_read_from_its_superblock(tmp_path):
    disk = tmp_path / "disk"
    for kib in (4096, 70000):
        subprocess.run(
            ["/sbin/mke2fs", "-q", "-F", "-t", "ext4", disk, f"{kib}k"],
            check=True,
            stdout=subprocess.DEVNULL,
        )
        assert read_ext4_bytes(disk.read_bytes()[:EXT4_HEAD_BYTES]) == kib * 1024


def test_an_ext4_beyond_16_tib_has_its_high_half_counted():
    block = bytearray(EXT4_HEAD_BYTES)
    block[1024 + 0x38 : 1024 + 0x3A] = b"\x53\xef"
    block[1024 + 0x18], block[1024 + 0x150] = 2, 2
    assert read_ext4_bytes(bytes(block)) == 2 << 44


@given(st.binary(max_size=4096))
def test_any_other_bytes_are_neither(data):
    assert read_qcow2(data) is None or data.startswith(b"QFI\xfb")
    assert read_ext4_bytes(data) is None or data[1080:1082] == b"\x53\xef"


@given(st.binary(max_size=200))
def test_a_qcow2_header_with_nonsense_in_it_is_read_without_error(rest):
    read_qcow2(b"QFI\xfb\0\0\0\x03" + rest)


def test_a_store_of_a_snapshot_is_known_by_its_head():
    fresh = bytes(SNAPSHOT_HEAD_BYTES)
    assert read_snapshot(fresh) == SnapshotHead(valid=True, chunk_sectors=0)
    used = struct.pack("<4I", 0x70416E53, 1, 1, 8)
    assert read_snapshot(used) == SnapshotHead(valid=True, chunk_sectors=8)
    given_up = struct.pack("<4I", 0x70416E53, 0, 1, 8)
    assert read_snapshot(given_up) == SnapshotHead(valid=False, chunk_sectors=8)


@pytest.mark.parametrize("head", [b"", b"SnAp", b"x" * 16, struct.pack("<4I", 0x70416E53, 1, 2, 8)])
def test_what_is_no_store_of_a_snapshot_is_none(head):
    assert read_snapshot(head) is None
