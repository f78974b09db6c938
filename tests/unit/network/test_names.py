"""The server of names answers for VMs that have an address, refuses what is not its own, and outlives whatever it is sent."""

import asyncio
import contextlib
import socket
import struct

import dns.flags
import dns.message
import dns.rcode
import pytest
from hypothesis import given
from hypothesis import strategies as st

from banger.network import names
from banger.network.names import NameServer, answer

VMS = {"web": ["10.113.0.16"], "a1b2c3d4e5f6": ["10.113.0.16"], "still": []}
lookup = VMS.get


def ask(name, kind="A", **options):
    """The parsed answer to a question."""
    query = dns.message.make_query(name, kind, **options)
    said = answer(query.to_wire(), lookup)
    assert len(said) <= names.MAX_ANSWER_BYTES
    reply = dns.message.from_wire(said)
    assert query.is_response(reply)
    return reply


def addresses(reply):
    return [item.address for rrset in reply.answer for item in rrset]


@pytest.mark.parametrize("name", ["web.banger", "WEB.Banger.", "a1b2c3d4e5f6.banger"])
@pytest.mark.parametrize("kind", ["A", "ANY"])
def test_a_vm_is_found_by_name_and_id(name, kind):
    reply = ask(name, kind)
    assert addresses(reply) == ["10.113.0.16"]
    assert reply.rcode() == dns.rcode.NOERROR
    assert reply.flags & dns.flags.AA
    assert not reply.flags & dns.flags.RA
    assert reply.answer[0].ttl == names.TTL_S


@pytest.mark.parametrize(
    ("name", "kind"),
    [("web.banger", "AAAA"), ("web.banger", "MX"), ("still.banger", "A"), ("banger", "A")],
)
def test_what_exists_but_has_no_such_data_says_so(name, kind):
    """NXDOMAIN for AAAA would make resolvers believe that there is no A either."""
    reply = ask(name, kind)
    assert (reply.rcode(), reply.answer) == (dns.rcode.NOERROR, [])
    assert "SOA" in str(reply.authority[0])


@pytest.mark.parametrize("name", ["nobody.banger", "x.web.banger", "web.web.banger", "*.banger"])
def test_another_name_of_the_zone_does_not_exist(name):
    assert ask(name).rcode() == dns.rcode.NXDOMAIN


@pytest.mark.parametrize(
    "name", ["web", "example.com", "banger.com", "web.banger.example", ".", "webbanger"]
)
def test_everything_else_is_refused(name):
    reply = ask(name)
    assert (reply.rcode(), reply.answer, reply.authority) == (dns.rcode.REFUSED, [], [])


def test_another_class_and_another_operation_are_refused():
    assert ask("web.banger", rdclass="CH").rcode() == dns.rcode.REFUSED
    query = dns.message.make_query("web.banger", "A")
    query.set_opcode(2)
    assert dns.message.from_wire(answer(query.to_wire(), lookup)).rcode() == dns.rcode.NOTIMP


def test_edns_is_spoken_where_it_is_asked_for():
    assert ask("web.banger", use_edns=0).edns == 0
    assert ask("web.banger", use_edns=False).edns == -1


def test_an_answer_is_never_answered():
    said = answer(dns.message.make_query("web.banger", "A").to_wire(), lookup)
    assert answer(said, lookup) is None


@given(st.binary(max_size=200))
def test_any_bytes_get_a_short_answer_or_none(data):
    said = answer(data, lookup)
    if said is not None:
        assert 12 <= len(said) <= names.MAX_ANSWER_BYTES
        assert said[:2] == data[:2]
        assert said[2] & 0x80


@given(st.data())
def test_a_query_that_was_damaged_anywhere_harms_nothing(data):
    query = bytearray(dns.message.make_query("web.banger", "A", use_edns=0).to_wire())
    for _ in range(data.draw(st.integers(1, 4))):
        query[data.draw(st.integers(0, len(query) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(query)))
    said = answer(bytes(query[:cut]), lookup)
    assert said is None or len(said) <= names.MAX_ANSWER_BYTES


@given(st.integers(0, 63), st.binary(max_size=63))
def test_labels_of_any_bytes_are_looked_up_as_text_only(length, label):
    asked = []
    head = struct.pack(">HHHHHH", 7, 0, 1, 0, 0, 0)
    body = bytes([len(label)]) + label + b"\6banger\0" + struct.pack(">HH", 1, 1)
    answer(head + body, asked.append)
    assert all(isinstance(name, str) and len(name) <= 63 for name in asked)


def test_a_name_that_leads_to_itself_is_malformed():
    loop = struct.pack(">HHHHHH", 7, 0, 1, 0, 0, 0) + b"\xc0\x0c" + struct.pack(">HH", 1, 1)
    assert dns.message.from_wire(answer(loop, lookup)).rcode() == dns.rcode.FORMERR


def test_too_long_a_query_is_not_read():
    query = dns.message.make_query("web.banger", "A").to_wire()
    assert answer(query + bytes(names.MAX_QUERY_BYTES), lookup) is None


@pytest.fixture
async def port():
    server = NameServer(lookup)
    yield await server.start(0)
    await server.close()
    await server.close()


async def over_udp(port, data, timeout_s=30):
    loop = asyncio.get_running_loop()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK) as opened:
        opened.connect(("127.0.0.1", port))
        await loop.sock_sendall(opened, data)
        async with asyncio.timeout(timeout_s):
            return await loop.sock_recv(opened, 4096)


async def test_udp_and_tcp_give_the_same_answer(port):
    query = dns.message.make_query("web.banger", "A")
    by_udp = await over_udp(port, query.to_wire())
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for _ in range(2):  # one connection may ask several times
        writer.write(struct.pack(">H", len(query.to_wire())) + query.to_wire())
        (length,) = struct.unpack(">H", await reader.readexactly(2))
        assert await reader.readexactly(length) == by_udp
    writer.close()
    assert addresses(dns.message.from_wire(by_udp)) == ["10.113.0.16"]


async def test_junk_ends_a_connection_and_nothing_else(port, monkeypatch):
    monkeypatch.setattr(names, "IDLE_S", 0.1)
    for junk in (b"\xff\xff" + bytes(70000), b"\0\5hello", b"\0\x20part", b"\0"):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(junk)
        async with asyncio.timeout(30):
            with contextlib.suppress(ConnectionError):
                assert await reader.read() == b""
        writer.close()
    query = dns.message.make_query("web.banger", "A")
    assert await over_udp(port, query.to_wire())


async def test_a_port_that_is_taken_is_an_error_and_leaves_nothing():
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        with pytest.raises(OSError, match="in use"):
            await NameServer(lookup).start(port)
    with socket.create_server(("127.0.0.1", port)):
        pass


async def test_many_connections_at_once_are_bounded(port):
    many = [await asyncio.open_connection("127.0.0.1", port) for _ in range(names.MAX_CONNECTIONS)]
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    async with asyncio.timeout(30):
        assert await reader.read() == b""
    for _, each in [*many, (reader, writer)]:
        each.close()
