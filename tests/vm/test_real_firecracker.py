"""The product tests itself: banger makes a test host, and in it the suite of the real Firecracker runs."""

import pytest

from tests.framework import firecracker_program, testhost
from tests.framework.testhost import TestHost

CREATE_S, SUITE_S = 1500, 2400


@pytest.mark.firecracker
@pytest.mark.timeout(CREATE_S + SUITE_S)
def test_the_suite_of_the_real_firecracker_passes_in_a_test_host(banger, test_image):
    if why := testhost.why_not():
        pytest.skip(f"no suite of the real Firecracker: {why}")
    programs, _ = firecracker_program.programs()
    host = TestHost(banger)
    host.create()
    host.provide(programs, test_image)
    assert host.pytest() == 0
