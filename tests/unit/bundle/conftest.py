import pytest

from banger.bundle import check, locate
from tests.framework.bundles import Bundle, Server, a_root


@pytest.fixture(autouse=True)
def nothing_is_remembered():
    check._known.clear()
    locate._said.clear()


@pytest.fixture
def root(tmp_path):
    return a_root(tmp_path / "root")


@pytest.fixture
def old(tmp_path):
    return Bundle("1.0.0", tmp_path)


@pytest.fixture
def new(tmp_path):
    return Bundle("1.1.0", tmp_path)


@pytest.fixture
def server(new):
    with Server(new.archive) as server:
        new.at(server.url)
        yield server
