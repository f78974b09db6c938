"""What tests of the commands share."""

import pytest

from tests.framework.fake_daemon import FakeDaemon, a_vm


@pytest.fixture
def daemon(tmp_path):
    """A daemon with one VM that runs, ``web``."""
    with FakeDaemon(tmp_path) as daemon:
        daemon.vms.append(a_vm("web"))
        yield daemon
