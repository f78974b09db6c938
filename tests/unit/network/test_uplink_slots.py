"""Addresses and names of uplinks: every slot its own, none outside the prefix, none where the host is already."""

import ipaddress
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.model.errors import InvalidInputError, RefusedError
from banger.network.plan import NetworkPlan
from banger.network.uplinks.slots import SlotPlan

SOME = ["10.115.0.0/16", "10.0.0.0/8", "172.29.16.0/20", "192.168.0.0/16", "100.64.0.0/10"]
PREFIXES = st.sampled_from(SOME)


@pytest.mark.parametrize("prefix", SOME)
def test_slots_share_nothing_and_stay_within_the_prefix(prefix):
    plan = SlotPlan(prefix)
    slots = [plan.slot(number) for number in range(1, plan.count + 1)]
    assert 3 <= len(slots) <= 255
    networks = [ipaddress.IPv4Network(n) for slot in slots for n in (slot.guests, slot.transfer)]
    assert all(network.subnet_of(plan.network) for network in networks)
    for one, other in itertools.pairwise(sorted(networks)):
        assert not one.overlaps(other)
    assert all(len(slot.link) <= 15 for slot in slots)
    for slot in slots:
        made = NetworkPlan(slot.guests, slot.transfer, routed=True)
        assert (made.uplink_gateway, made.uplink_address) == (
            slot.host_address,
            slot.inside_address,
        )
        assert made.capacity == 1000


@given(PREFIXES, st.integers(0, 2**32 - 2), st.sets(st.integers(1, 255)))
def test_a_user_gets_the_same_slot_again_or_another_free_one(prefix, uid, taken):
    plan = SlotPlan(prefix)
    first = plan.choose([], uid)
    assert plan.choose([], uid) == first
    try:
        chosen = plan.choose(taken, uid)
    except RefusedError:
        assert set(range(1, plan.count + 1)) <= taken
        return
    assert chosen.number not in taken
    assert first.number in taken or chosen == first


@pytest.mark.parametrize("prefix", ["8.8.0.0/16", "10.115.0.1/16", "10.115.0.0/21", "0.0.0.0/0", "fd00::/16", "x", "10.0.0.0/7", "203.0.113.0/20"])  # fmt: skip
def test_a_prefix_that_is_no_private_network_of_some_size_is_refused(prefix):
    with pytest.raises(InvalidInputError) as caught:
        SlotPlan(prefix)
    assert caught.value.hint


@pytest.mark.parametrize("routes", [
    [("10.115.0.0", 16)], [("10.0.0.0", 8)], [("10.115.77.1", 32)], [("10.115.128.0", 17), ("0.0.0.0", 0)],
])  # fmt: skip
def test_a_prefix_in_use_is_refused_with_one_that_is_free(routes):
    with pytest.raises(RefusedError, match="in use on this host") as caught:
        SlotPlan().check_free([*routes, ("10.213.0.0", 16)])
    assert '"172.29.0.0/16"' in caught.value.hint


def test_default_routes_and_other_networks_are_no_obstacle():
    SlotPlan().check_free(
        [("0.0.0.0", 0), ("0.0.0.0", 1), ("128.0.0.0", 1), ("10.114.0.0", 16), ("127.0.0.0", 8)]
    )


def test_the_mac_tells_ours_from_others():
    slot = SlotPlan().slot(3)
    assert slot.mac("token") == slot.mac("token")
    assert slot.mac("token") != slot.mac("another")
    assert slot.mac("token") != SlotPlan().slot(4).mac("token")
    assert slot.mac("token")[0] & 3 == 2  # locally administered, to one station
