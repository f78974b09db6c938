import pytest

from tests.framework.fake_world import World


@pytest.fixture
async def world(tmp_path):
    return World(tmp_path)


@pytest.fixture
async def engine(world):
    engine = world.engine()
    yield engine
    await engine.close()
    engine.context.store.close()
