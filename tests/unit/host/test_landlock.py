"""Rights by version, as linux/landlock.h lists them."""

import pytest

from banger.host import landlock


@pytest.mark.parametrize(
    ("version", "highest"),
    [
        (1, 1 << 12),  # MAKE_SYM
        (2, 1 << 13),  # REFER
        (3, landlock.TRUNCATE),
        (4, landlock.TRUNCATE),
        (5, landlock.IOCTL_DEV),
        (9, landlock.IOCTL_DEV),
    ],
)
def test_every_right_that_a_version_knows_is_taken(version, highest):
    assert landlock.fs_rights(version) == 2 * highest - 1


def test_the_version_is_asked_of_the_kernel():
    assert 0 <= landlock.abi() < 100
