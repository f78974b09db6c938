"""What banger-helper gives to whom of snapshots: names, numbers, quotas."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.host.dm import Mapping
from banger.model.errors import InvalidInputError, RefusedError
from banger.model.units import GIB
from banger.storage.snapshots import rules
from banger.storage.snapshots.rules import Names, Quota

TOKEN = "0123456789abcdef"


@given(st.integers(1, rules.MAX_SLOTS))
def test_a_slots_mappings_are_known_by_their_uuid(number):
    names = Names(number, TOKEN)
    for name, uuid in ((names.disk, names.disk_uuid), (names.base, names.base_uuid)):
        mapping = Mapping(name, uuid, 0)
        assert rules.slot_of(mapping, TOKEN) == number
        assert rules.slot_of(mapping, "another") is None
        assert rules.named_so([mapping]) == {number}
        assert len(uuid) < 128  # DM_UUID_LEN


@given(st.text(max_size=40), st.sampled_from(["", "banger-s", "BANGER-HELPER-0123456789abcdef-"]))
def test_whatever_others_call_theirs_is_no_slot_or_a_number(text, stem):
    mapping = Mapping(stem + text, stem + text, 0)
    found = rules.slot_of(mapping, TOKEN)
    assert found is None or str(found).isdigit()
    assert all(isinstance(number, int) for number in rules.named_so([mapping]))


def test_the_lowest_free_slot_is_taken():
    assert rules.free_slot([]) == 1
    assert rules.free_slot([1, 2, 4]) == 3
    with pytest.raises(RefusedError, match="no snapshot is free"):
        rules.free_slot(range(1, rules.MAX_SLOTS + 1))


def test_a_users_quota_is_of_number_and_of_size():
    quota = Quota(3, 10 * GIB)
    quota.check(1000, [4 * GIB, 4 * GIB], 2 * GIB)
    for disks, another in (([GIB] * 3, 1), ([4 * GIB, 4 * GIB], 2 * GIB + 512)):
        with pytest.raises(RefusedError, match="user 1000") as caught:
            quota.check(1000, disks, another)
        assert "quota" in caught.value.detail
        assert caught.value.hint


@given(st.integers(), st.integers(), st.integers())
def test_numbers_of_any_size_are_in_range_or_refused(installation, vm, sectors):
    try:
        rules.check_numbers(installation, vm, sectors)
    except InvalidInputError:
        return
    assert 0 <= installation < 1 << 48
    assert 0 <= vm < 1 << 48
    assert 0 < sectors * 512 <= rules.MAX_DISK_BYTES


@given(st.binary(max_size=64), st.integers(0, 1 << 41), st.integers(0, 1 << 41), st.integers(1, 1 << 31))  # fmt: skip
def test_files_of_any_kind_are_a_snapshots_or_refused(head, image_bytes, store_bytes, sectors):
    try:
        rules.check_files(image_bytes, store_bytes, head, sectors)
    except InvalidInputError:
        return
    assert 512 <= image_bytes < (sectors + 1) * 512
    assert store_bytes >= 4096
    assert not any(head[:16]) or head[12:16] == bytes([8, 0, 0, 0])


@pytest.mark.parametrize("table", ["0 8 snapshot 7:0 7:1 P 8", "0 131072 snapshot 253:0 7:3 P 8"])
def test_the_kernels_table_has_our_chunk_size(table):
    rules.check_table(table)
    for other in (table.replace("P 8", "P 1"), table.replace("P 8", "N 8"), ""):
        with pytest.raises(RefusedError, match="changed meanwhile"):
            rules.check_table(other)
