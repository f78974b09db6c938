"""How failures of making disks are told."""

import errno
import os
from pathlib import Path

import pytest

from banger.model.errors import BangerError, CommandFailedError, HostLacksError
from banger.storage.faults import clear_error

HERE = Path("/state/vms/abc")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_says_where_and_what_to_do(number):
    told = clear_error(OSError(number, os.strerror(number)), HERE)
    assert isinstance(told, HostLacksError)
    assert told.what == "no space for a VM's disks on /state/vms/abc"
    assert told.hint.startswith("banger vm list")


def test_a_tool_that_found_the_disk_full_counts_as_one():
    told = clear_error(
        CommandFailedError(("qemu-img",), "ended", stderr_tail="x: No space left on device"), HERE
    )
    assert told.what.startswith("no space")


def test_any_other_error_of_the_kernel_keeps_its_words():
    told = clear_error(OSError(errno.EROFS, "Read-only file system"), HERE)
    assert (type(told), "Read-only file system" in told.detail) == (HostLacksError, True)


def test_an_error_that_is_ours_is_left_alone():
    error = CommandFailedError(
        ("resize2fs",), "ended with status 1", stderr_tail="Bad magic number"
    )
    assert clear_error(error, HERE) is error


def test_of_a_group_our_own_error_counts():
    ours = BangerError("ours")
    assert clear_error(BaseExceptionGroup("two", [ValueError("theirs"), ours]), HERE) is ours
