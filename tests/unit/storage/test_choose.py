"""Which driver a new VM gets, and why: a table."""

from pathlib import Path

import pytest

from banger.host.probe import Answer
from banger.model.errors import HostLacksError, RefusedError
from banger.model.machine import DiskFormat, StorageDriver
from banger.storage.choose import Facts, choose, wanted_format

QEMU = ("qemu", (DiskFormat.QCOW2, DiskFormat.RAW))
FIRECRACKER = ("firecracker", (DiskFormat.RAW,))
YES = Answer(ok=True)
NO_SHARING = Answer(ok=False, why="ext4 cannot share blocks", hint="sudo banger setup storage")
HELPER = Answer(ok=True, found="banger-helper")
NO_DM = Answer(ok=False, why="it needs root", hint="run it as root")


def facts(*, reflink=NO_SHARING, dm=NO_DM):
    return Facts(Path("/state"), reflink, dm)


@pytest.mark.parametrize(
    ("vmm", "host", "driver", "why"),
    [
        (QEMU, facts(), "qcow2", "qemu reads it"),
        (QEMU, facts(reflink=YES, dm=YES), "qcow2", "qemu reads it"),
        (FIRECRACKER, facts(reflink=YES, dm=YES), "reflink", "shares blocks"),
        (FIRECRACKER, facts(reflink=YES), "reflink", "shares blocks"),
        (FIRECRACKER, facts(dm=YES), "dm-snapshot", "cannot share blocks"),
        (
            FIRECRACKER,
            facts(dm=HELPER),
            "dm-snapshot",
            "the device mapper can, through banger-helper",
        ),
        (FIRECRACKER, facts(), "copy", "no dm-snapshot: it needs root"),
    ],
)
def test_auto_takes_the_best_and_says_why(vmm, host, driver, why):
    choice = choose("auto", *vmm, host)
    assert choice.driver == driver
    assert choice.why.startswith("auto: ")
    assert why in choice.why


@pytest.mark.parametrize(
    ("wanted", "vmm", "host"),
    [
        ("qcow2", QEMU, facts()),
        ("copy", FIRECRACKER, facts(reflink=YES)),
        ("copy", QEMU, facts()),
        ("reflink", QEMU, facts(reflink=YES)),
        ("dm-snapshot", FIRECRACKER, facts(dm=YES)),
        ("dm-snapshot", QEMU, facts(dm=YES)),
    ],
)
def test_a_configured_driver_that_can_work_is_taken(wanted, vmm, host):
    choice = choose(wanted, *vmm, host)
    assert (choice.driver, choice.why) == (wanted, "configured")


def test_a_configured_dm_snapshot_says_who_makes_it():
    assert choose("dm-snapshot", *QEMU, facts(dm=HELPER)).why == "configured, through banger-helper"


def test_reflink_where_blocks_cannot_be_shared_names_the_command_that_mends_it():
    with pytest.raises(HostLacksError, match="reflink cannot work in /state") as raised:
        choose("reflink", *QEMU, facts(dm=YES))
    assert raised.value.detail == NO_SHARING.why
    assert raised.value.hint == "sudo banger setup storage --state-dir /state"


def test_dm_snapshot_without_the_device_mapper_is_refused_with_its_reason():
    with pytest.raises(HostLacksError, match="dm-snapshot cannot work") as raised:
        choose("dm-snapshot", *FIRECRACKER, facts(reflink=YES))
    assert (raised.value.detail, raised.value.hint) == (NO_DM.why, NO_DM.hint)


def test_a_disk_that_the_vmm_cannot_read_is_refused():
    with pytest.raises(RefusedError, match="qcow2 does not go with VMM firecracker") as raised:
        choose("qcow2", *FIRECRACKER, facts(reflink=YES))
    assert raised.value.hint == "create it with --vmm qemu"


def test_every_driver_has_a_format_and_auto_has_none():
    assert wanted_format("auto") is None
    assert {driver: wanted_format(driver) for driver in StorageDriver} == {
        StorageDriver.QCOW2: DiskFormat.QCOW2,
        StorageDriver.REFLINK: DiskFormat.RAW,
        StorageDriver.COPY: DiskFormat.RAW,
        StorageDriver.DM_SNAPSHOT: DiskFormat.RAW,
    }
