"""A host of the test's own with banger-helper, and an installation in bridge mode there."""

import pytest

from tests.framework.faulty import Faulty
from tests.framework.helper_host import host_state
from tests.framework.helper_process import HelperProcess
from tests.framework.installation import wait_until


@pytest.fixture
def helper(own_host, tmp_path):
    """banger-helper, of which nothing is left on that host in the end."""
    before = host_state()
    directory = tmp_path / "helper"
    directory.mkdir()
    running = HelperProcess(directory, options=("--prefix", "10.115.0.0/16"))
    running.start()
    yield running
    running.kill()
    running.start()  # what was left is removed by the next one
    running.stop()
    # The kernel removes the links of a namespace some time after its last process has ended.
    wait_until(lambda: host_state() == before, 60, "the host is not as it was")


@pytest.fixture
def bridged(helper, tmp_path, image, request):
    """An installation in bridge mode."""
    installation = Faulty(
        tmp_path, helper_socket=helper.socket, helper_state_dir=helper.state, network="bridge"
    )
    yield installation
    if getattr(request.node, "failed", False):
        print(installation.logs())
    left = installation.close()
    assert not left, f"left behind: {left}"
