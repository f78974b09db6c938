"""rtnetlink messages by hand: what they look like, and that answers are read with care."""

import errno
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.host import netlink, probe
from banger.host.netlink import NetlinkError, Route, attribute, attributes, nested


def test_attributes_are_padded_and_read_back():
    data = attribute(1, b"abc") + attribute(2, 7) + attribute(3, "lo")
    assert len(data) % 4 == 0
    assert attributes(data) == {1: b"abc", 2: struct.pack("=I", 7), 3: b"lo\0"}
    assert attributes(attributes(nested(9, attribute(1, 5)))[9]) == {1: struct.pack("=I", 5)}


@given(st.binary(max_size=64))
def test_broken_answers_neither_raise_nor_loop(data):
    attributes(data)
    list(netlink._messages(data))


def test_the_hosts_own_networks_hold_its_loopback():
    with Route.here() as route:
        found = route.local_networks()
    assert ("127.0.0.0", 8) in found
    assert found == sorted(
        set(found), key=lambda each: (bytes(map(int, each[0].split("."))), each[1])
    )


def test_a_link_is_found_or_its_absence_said():
    with Route.here() as route:
        assert route.index("lo") == 1
        assert route.exists("lo")
        assert not route.exists("no-such-link")
        with pytest.raises(NetlinkError, match="no-such-link") as caught:
            route.index("no-such-link")
    assert caught.value.errno == errno.ENODEV


@pytest.mark.skipif(not probe.root(), reason=f"changing links needs root: {probe.root().why}")
def test_what_is_gone_already_is_deleted_with_success():
    with Route.here() as route:
        assert route.delete_link("no-such-link") is False
