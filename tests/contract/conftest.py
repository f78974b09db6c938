import pytest

from banger.guest.connection import connect_guest
from tests.framework.agent_process import agent_process


@pytest.fixture
def agent(tmp_path):
    with agent_process(tmp_path) as (paths, process):
        yield paths, process


@pytest.fixture
async def guest(agent):
    guest = connect_guest(agent[0], "serial")
    await guest.wait_connected(10)
    yield guest
    await guest.close()
