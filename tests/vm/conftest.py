"""Fixtures of the tests that boot guests."""

import pytest

from banger.host.probe import root
from tests.framework.net_host import OwnHost


@pytest.fixture
def own_host():
    """The daemon that a test starts lives on this host: beyond it is a machine that echoes."""
    if not root():
        pytest.skip(f"a host of its own needs root: {root().why}")
    host = OwnHost()
    yield host
    host.close()
