"""The device mapper: tables and statuses as text."""

from pathlib import Path

import pytest

from banger.host import dm
from banger.host.dm import Mapping, SnapshotStatus
from banger.model.units import GIB, MIB


def test_the_table_of_a_snapshot():
    table = dm.snapshot(Path("/dev/loop3"), Path("/dev/loop4"), 16777216)
    assert table == "0 16777216 snapshot /dev/loop3 /dev/loop4 P 8\n"


def test_the_table_of_an_image_that_is_smaller_than_the_disk():
    table = dm.linear_then_zeros(Path("/dev/loop3"), 2048, 10240)
    assert table == "0 2048 linear /dev/loop3 0\n2048 8192 zero\n"


def test_statuses_are_read():
    text = (
        "banger-aaaaaaaaaaaa: 0 16777216 snapshot 4096/524288 24\n"
        "lost: 0 8192 snapshot Invalid\n"
        "full: 0 8192 snapshot Overflow\n"
        "failed: 0 8192 snapshot Merge failed\n"
        "other: 0 8192 linear \n"
        "nonsense\n"
        "torn: 0 81\n"
    )
    assert dm.parse_status(text) == {
        "banger-aaaaaaaaaaaa": SnapshotStatus(4096 * 512, 524288 * 512, disk_bytes=8 * GIB),
        "lost": SnapshotStatus(broken="Invalid", disk_bytes=4 * MIB),
        "full": SnapshotStatus(broken="Overflow", disk_bytes=4 * MIB),
        "failed": SnapshotStatus(broken="Merge failed", disk_bytes=4 * MIB),
    }


@pytest.mark.parametrize("size_bytes", [4096, MIB, 64 * MIB, 8 * GIB, 8 * GIB + 4096])
def test_a_store_can_hold_every_chunk_and_not_much_more(size_bytes):
    chunks = size_bytes // 4096
    least = (1 + -(-chunks // 256) + chunks) * 4096  # header, a table for every 256 chunks, chunks
    assert least <= dm.store_limit_bytes(size_bytes) <= least + 2 * 4096


def test_what_is_there_is_read():
    text = "10|BANGER-1-a|banger-a\n0|LVM-x|vg-root\n3||a|b\nNo devices found\n"
    assert dm.parse_mappings(text) == [
        Mapping("vg-root", "LVM-x", 0),
        Mapping("a|b", "", 3),
        Mapping("banger-a", "BANGER-1-a", 10),
    ]
