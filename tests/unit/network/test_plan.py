"""Leases and names: pure arithmetic."""

import ipaddress
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.model.errors import RefusedError
from banger.network.plan import BRIDGE_MAC, MAX_LEASES, NetworkPlan, mac_address, tap_name

PLAN = NetworkPlan()


def leases(count, plan=PLAN):
    taken = []
    for number in range(count):
        taken.append(plan.plan_lease(f"{number:012x}", taken))
    return taken


def test_the_smallest_free_index_is_taken():
    taken = leases(5)
    assert [lease.index for lease in taken] == [0, 1, 2, 3, 4]
    del taken[2]
    assert PLAN.plan_lease("a" * 12, taken).index == 2


def test_a_thousand_vms_have_addresses_macs_and_taps_of_their_own():
    every = [PLAN.lease(f"{number:012x}", number) for number in range(MAX_LEASES)]
    for distinct in ({x.ip for x in every}, {x.mac for x in every}, {tap_name(x) for x in every}):
        assert len(distinct) == MAX_LEASES
    network = ipaddress.ip_network(PLAN.guests)
    own = {PLAN.gateway, PLAN.dns, str(network[0]), str(network[-1])}
    assert all(ipaddress.ip_address(x.ip) in network and x.ip not in own for x in every)
    assert all(len(tap_name(x)) <= 15 for x in every)
    assert {x.names for x in every} == {PLAN.names}
    assert PLAN.names not in {x.ip for x in every} | {PLAN.gateway, PLAN.dns}


def test_a_used_up_range_is_refused():
    small = NetworkPlan(guests="10.9.0.0/26", uplink="10.8.0.0/24")
    taken = leases(small.capacity, small)
    assert taken[-1].ip == "10.9.0.62"  # .63 is the broadcast address
    with pytest.raises(RefusedError) as caught:
        small.plan_lease("b" * 12, taken)
    assert "10.9.0.0/26" in caught.value.detail


def test_overlapping_or_tiny_networks_are_no_plan():
    for guests, uplink in (
        ("10.1.0.0/16", "10.1.2.0/24"),
        ("10.1.0.0/27", "10.2.0.0/24"),
        ("10.1.0.0/16", "10.2.0.0/25"),
    ):
        with pytest.raises(ValueError, match="overlap or are too small"):
            NetworkPlan(guests, uplink)


@given(st.integers(0, 65534))
def test_a_mac_is_local_unicast_says_its_index_and_is_not_the_bridges(index):
    octets = bytes.fromhex(mac_address(index).replace(":", ""))
    assert len(octets) == 6
    assert octets[0] & 3 == 2
    assert int.from_bytes(octets[2:4]) == index
    assert octets != BRIDGE_MAC


def test_another_network_changes_a_lease_s_addresses_and_not_its_mac():
    old = replace(PLAN.lease("a" * 12, 7), mac="02:b4:00:07:12:34")  # of an older banger
    there = NetworkPlan(guests="10.9.0.0/24", uplink="10.8.0.0/24").readdressed(old)
    assert (there.mac, there.index, there.vm_id) == (old.mac, 7, old.vm_id)
    assert (there.ip, there.gateway) == ("10.9.0.23", "10.9.0.1")
