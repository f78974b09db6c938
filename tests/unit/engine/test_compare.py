"""What is told of a look at record and host: a pure function."""

import pytest

from banger.engine.compare import compare
from banger.model.residue import DirectoryIs, KnownVm, OnHost, OnRecord, Remedy
from banger.model.state import VmState

KNOWN, STRANGER = "a" * 12, "0123456789ab"
ON_RECORD = OnRecord((KnownVm(KNOWN, "one", VmState.STOPPED, "d" * 12),), frozenset({KNOWN}))


def test_a_control_group_of_an_unknown_vm_is_told_and_can_go():
    (finding,) = compare(ON_RECORD, OnHost(left=frozenset({STRANGER})))
    assert (finding.kind, finding.sense, finding.remedy) == ("leftover", "unrecorded", Remedy.FORGET)  # fmt: skip
    assert finding.what == f"there is a control group of VM {STRANGER}, which nobody knows"
    assert (finding.name, finding.vm_id) == (STRANGER, STRANGER)


def test_a_control_group_of_a_known_vm_at_rest_is_told_once():
    (finding,) = compare(ON_RECORD, OnHost(left=frozenset({KNOWN})))
    assert (finding.kind, finding.remedy, finding.name) == ("leftover", Remedy.MEND, "one")


def test_a_control_group_of_a_vm_that_an_operation_works_on_is_not_judged():
    busy = OnRecord(ids=frozenset({KNOWN}))
    assert compare(busy, OnHost(left=frozenset({KNOWN}))) == []


@pytest.mark.parametrize(
    ("there", "remedy"),
    [
        (DirectoryIs.LOST, Remedy.RECOVER),
        (DirectoryIs.REST, Remedy.FORGET),
        (DirectoryIs.KEPT, Remedy.NONE),
        (DirectoryIs.MIXED, Remedy.NONE),
    ],
)
def test_what_its_directory_is_decides_where_there_is_one(there, remedy):
    host = OnHost(left=frozenset({STRANGER}), directories={STRANGER: there})
    assert {finding.remedy for finding in compare(ON_RECORD, host)} == {remedy}
