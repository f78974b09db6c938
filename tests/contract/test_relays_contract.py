"""What relays promise (`engine.ports.Relays`): one suite for the fake and for the ones that listen."""

import pytest

from banger.model.errors import RefusedError
from banger.model.spec import ForwardProtocol
from banger.network.forward import Relays
from tests.framework.fake_world import FakeRelays, World

BOTH = pytest.mark.parametrize("protocol", list(ForwardProtocol))


@pytest.fixture(params=["fake", "real"])
async def relays(request, tmp_path):
    made = FakeRelays(World(tmp_path)) if request.param == "fake" else Relays()
    yield made
    await made.close()


async def nobody():
    raise ConnectionRefusedError


@BOTH
async def test_any_free_port_is_given_and_then_taken(relays, protocol):
    port = await relays.add(0, nobody, protocol=protocol)
    assert 0 < port < 65536
    with pytest.raises(RefusedError, match=str(port)):
        await relays.add(port, nobody, protocol=protocol)
    with pytest.raises(RefusedError, match=str(port)):
        relays.free_port(protocol, port)


@BOTH
async def test_a_port_that_is_removed_is_free_again_and_removing_is_idempotent(relays, protocol):
    port = await relays.add(0, nobody, protocol=protocol)
    for _ in range(2):
        await relays.remove(port, protocol=protocol)
    assert relays.free_port(protocol, port) == port
    assert await relays.add(port, nobody, protocol=protocol) == port


async def test_a_port_of_one_protocol_says_nothing_of_the_other(relays):
    port = await relays.add(0, nobody)
    assert await relays.add(port, nobody, protocol=ForwardProtocol.UDP) == port
    await relays.remove(port)
    with pytest.raises(RefusedError):
        await relays.add(port, nobody, protocol=ForwardProtocol.UDP)


@BOTH
async def test_asking_for_a_free_port_takes_none(relays, protocol):
    port = relays.free_port(protocol)
    assert await relays.add(port, nobody, protocol=protocol) == port
