import pytest

from banger.client.sdk import Client
from tests.framework.fake_daemon import FakeDaemon


@pytest.fixture
def daemon(tmp_path):
    with FakeDaemon(tmp_path) as daemon:
        yield daemon


@pytest.fixture
def client(daemon):
    with Client(daemon.socket_path, timeout_s=10) as client:
        yield client
