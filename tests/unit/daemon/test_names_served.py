"""A real daemon serves names where its configuration says so, and says so where it cannot."""

import socket

import dns.message
import dns.query
import dns.rcode
import pytest

from tests.framework.faulty import Faulty


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@pytest.fixture
def banger(tmp_path, port):
    installation = Faulty(tmp_path, dns_port=port)
    yield installation
    assert installation.close() == []


@pytest.mark.parametrize("ask", [dns.query.udp, dns.query.tcp])
def test_names_are_answered_while_the_daemon_runs(banger, port, ask):
    with banger.daemon():
        for name, code in (
            ("nobody.banger", dns.rcode.NXDOMAIN),
            ("example.com", dns.rcode.REFUSED),
        ):
            reply = ask(dns.message.make_query(name, "A"), "127.0.0.1", timeout=30, port=port)
            assert reply.rcode() == code
    with socket.create_server(("127.0.0.1", port)):
        pass


def test_a_daemon_whose_port_is_taken_runs_and_warns(banger, port):
    with socket.create_server(("127.0.0.1", port)), banger.daemon() as client:
        (warning,) = client.info().warnings
        assert str(port) in warning
        assert client.vms() == []
