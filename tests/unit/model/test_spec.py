"""Forwards are written and read in one way."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.model.errors import InvalidInputError
from banger.model.spec import Forward, ForwardProtocol, NetworkMode, VmSpec, parse_host_port

UDP = ForwardProtocol.UDP
ports = st.integers(1, 65535)


@given(st.integers(0, 65535), ports, st.sampled_from(ForwardProtocol))
def test_what_is_written_is_read_again(host, guest, protocol):
    forward = Forward(host, guest, protocol)
    assert Forward.parse(str(forward)) == forward


@pytest.mark.parametrize(
    ("text", "forward"),
    [
        ("8080:80", Forward(8080, 80)),
        ("80", Forward(0, 80)),
        ("0:80/tcp", Forward(0, 80)),
        ("5353:53/udp", Forward(5353, 53, UDP)),
        ("53/udp", Forward(0, 53, UDP)),
    ],
)
def test_the_forms_of_a_forward(text, forward):
    assert Forward.parse(text) == forward


@given(st.text(alphabet="0123456789:/udptcp \u0663-", max_size=20))
def test_anything_else_is_refused_with_the_form(text):
    try:
        forward = Forward.parse(text)
    except InvalidInputError:
        return
    else:
        assert Forward.parse(str(forward)) == forward


@pytest.mark.parametrize("text", ["", ":80", "80:", "\u0663", "1:2:3", "80/", "80/UDP", "x" * 200])
def test_near_misses_are_refused(text):
    with pytest.raises(InvalidInputError, match=r"is not \[HOST:\]GUEST"):
        Forward.parse(text)
    with pytest.raises(InvalidInputError, match="is not HOST"):
        parse_host_port(text)


def test_a_port_of_the_host_is_read():
    assert parse_host_port("8080") == (ForwardProtocol.TCP, 8080)
    assert parse_host_port("53/udp") == (UDP, 53)
    with pytest.raises(InvalidInputError, match="out of range"):
        parse_host_port("65536")


def test_one_port_of_the_host_leads_to_one_place_a_protocol():
    VmSpec(forwards=(Forward(53, 53), Forward(53, 53, UDP), Forward(0, 53), Forward(0, 53)))
    with pytest.raises(InvalidInputError, match="forwarded twice"):
        VmSpec(forwards=(Forward(53, 53, UDP), Forward(53, 54, UDP)))


def test_without_a_network_there_is_no_udp():
    VmSpec(network=NetworkMode.NONE, forwards=(Forward(0, 53),))
    with pytest.raises(InvalidInputError, match="takes no UDP"):
        VmSpec(network=NetworkMode.NONE, forwards=(Forward(0, 53, UDP),))
