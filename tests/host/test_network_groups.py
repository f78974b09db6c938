"""VMs that share a group reach each other, and nobody else: with real stacks and with hand-made frames, in both modes."""

import asyncio
import functools
import itertools
import json
import socket
import subprocess
import time

import dns.message
import dns.rcode
import pytest

from banger.host.exec import run
from banger.host.namespaces import enter
from banger.network import user
from banger.network.plan import BRIDGE_MAC
from tests.framework.net_host import BEYOND, ECHO_PORT, arp, ethernet, ipv4, name_servers, udp

ARP = 0x0806
UNREACHED = "No route to host|timed out"


@pytest.fixture(params=["user", "bridge"])
def network_mode(request):
    """All of this is promised in both modes."""
    return request.param


async def in_thread(work, *arguments, **named):
    return await asyncio.to_thread(work, *arguments, **named)


PORTS = itertools.count(8100)


def talk(one, other):
    """Open a connection from one guest to another, and say which address the other sees."""
    port = next(PORTS)
    with other.listen(port) as listening, one.connect(other.lease.ip, port) as opened:
        accepted, peer = listening.accept()
        with accepted:
            opened.sendall(b"neighbour")
            assert accepted.recv(9) == b"neighbour"
            accepted.sendall(b"back")
            assert opened.recv(4) == b"back"
    return peer[0]


async def apart(one, other):
    port = next(PORTS)
    with other.listen(port), pytest.raises(OSError, match=UNREACHED):
        await in_thread(one.connect, other.lease.ip, port, timeout=0.5)


async def test_guests_of_a_group_reach_each_other_both_ways_as_themselves(guests):
    one = await guests.linux(groups=["web"])
    other = await guests.linux(groups=["db", "web"])
    stranger, alone = await guests.linux(groups=["ci"]), await guests.linux()
    assert await in_thread(talk, one, other) == one.lease.ip
    assert await in_thread(talk, other, one) == other.lease.ip
    with other.serve_udp(9000) as served:
        sender = one.namespace.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM)
        with sender:
            sender.sendto(bytes(1400), (other.lease.ip, 9000))
            assert len((await in_thread(served.recvfrom, 2000))[0]) == 1400
    for each in (stranger, alone):
        await apart(one, each)
        await apart(each, one)
    await apart(stranger, alone)


async def test_a_group_changes_while_its_guests_run(guests):
    one, other = await guests.linux(), await guests.linux(groups=["web"])
    network = guests.network
    await apart(one, other)
    for _ in range(2):
        await network.set_groups(one.lease, ["web"])
        await in_thread(talk, one, other)
    with other.listen(8000) as listening:
        opened = await in_thread(one.connect, other.lease.ip, 8000)
        accepted, _ = await in_thread(listening.accept)
        await network.set_groups(other.lease, ["db"])
        opened.sendall(b"after")
        accepted.settimeout(0.5)
        with pytest.raises(TimeoutError):
            await in_thread(accepted.recv, 5)
        opened.close()
        accepted.close()
    await apart(other, one)


async def test_a_group_is_no_way_outside(guests, own_host):
    inside = await guests.linux(outward=False, groups=["web"])
    outside = await guests.linux(groups=["web"])
    await in_thread(talk, inside, outside)
    await in_thread(talk, outside, inside)
    with pytest.raises(OSError, match=UNREACHED):
        await in_thread(inside.tcp_echo, BEYOND)
    assert await in_thread(outside.tcp_echo, BEYOND) == b"hello"


async def test_a_deleted_vm_leaves_no_permission_to_the_next_of_its_number(guests):
    one, other = await guests.linux(groups=["web"]), await guests.linux(groups=["web"])
    await in_thread(talk, one, other)
    await guests.network.detach(other.lease)
    assert await pairs(guests.network) == set()
    guests.leases.remove(next(each for each in guests.leases if each.index == 1))
    again = await guests.linux()
    assert again.lease.ip == other.lease.ip
    await apart(one, again)


async def pairs(network):
    """Who may speak to whom, by the kernel's own words."""
    found = []
    async with network._space._inside() as inside:
        for family in ("bridge", "inet"):
            argv = [*enter(inside), "nft", "-j", "list", "set", family, "banger", "peers"]
            done = await run(argv, timeout_s=10, pass_fds=inside.descriptors)
            (listed,) = [e["set"] for e in json.loads(done.stdout)["nftables"] if "set" in e]
            found.append({tuple(each["concat"]) for each in listed.get("elem", [])})
    assert found[0] == found[1]
    return found[0]


async def test_it_is_elements_of_sets_and_symmetric(guests):
    attached = [await guests.attach_and_close(groups=["web"]) for _ in range(4)]
    addresses = [each.lease.ip for each in attached]
    wanted = {(one, other) for one in addresses for other in addresses if one != other}
    assert await pairs(guests.network) == wanted


@pytest.mark.parametrize("lie", ["mac", "ip", "direct", "gateway mac", "reply"])
async def test_a_lie_goes_no_further_than_before(guests, lie):
    """Peers reach each other by the bridge alone, as what they are."""
    one = await guests.wire(groups=["web"])
    other = await guests.wire(groups=["web"])
    victim = await guests.wire(groups=["db"])
    marked = udp(ECHO_PORT, b"lying")
    sent = {
        "mac": ("02:00:00:00:00:99", one.gateway_mac, one.lease.ip),
        "ip": (one.lease.mac, one.gateway_mac, victim.lease.ip),
        "direct": (one.lease.mac, other.lease.mac, one.lease.ip),
        "gateway mac": (one.gateway_mac, one.gateway_mac, one.lease.ip),
        "reply": (other.lease.mac, one.gateway_mac, other.lease.ip),
    }[lie]
    source, target, address = sent
    for to in (other, victim):
        one.send(ethernet(target, source, 0x0800, ipv4(address, to.lease.ip, 17, marked)))
    one.send_ipv4(ipv4(one.lease.ip, other.lease.ip, 17, udp(ECHO_PORT, b"honest")))
    _, before = await in_thread(other.wait_for, lambda frame: frame.endswith(b"honest"))
    assert [frame for frame in before if frame.endswith(b"lying")] == []
    assert list(victim.frames(0.1)) == []


async def test_the_bridge_answers_arp_for_peers_at_once_and_for_no_others(guests):
    one, other = await guests.wire(groups=["web"]), await guests.wire(groups=["web"])
    stranger = await guests.wire()
    for unseen in (stranger.lease.ip, guests.network._plan.lease("", 99).ip):
        asked = arp(one.lease.mac, one.lease.ip, unseen)
        one.send(ethernet("ff:ff:ff:ff:ff:ff", one.lease.mac, ARP, asked))
    asked = arp(one.lease.mac, one.lease.ip, other.lease.ip)
    one.send(ethernet("ff:ff:ff:ff:ff:ff", one.lease.mac, ARP, asked))
    answer, before = await in_thread(one.wait_for, lambda f: f[12:14] == b"\x08\x06")
    assert answer[22:28] == BRIDGE_MAC
    assert socket.inet_ntoa(answer[28:32]) == other.lease.ip
    assert before == []
    assert list(other.frames(0.1)) == []


async def test_the_next_daemon_keeps_and_mends_them(guests, short_dir, network_mode):
    if network_mode == "bridge":
        pytest.skip("the same code, without an uplink to let go of")
    one, other = await guests.linux(groups=["web"]), await guests.linux(groups=["web"])
    third = await guests.linux(groups=["web"])
    await guests.network.close()
    second = user.UserNetwork(short_dir, short_dir)
    await second.start()
    try:
        await in_thread(talk, one, other)
        await second.set_groups(one.lease, ["web"])
        await in_thread(talk, one, other)  # the other has not been told of yet
        await second.set_groups(other.lease, ["web"])
        await second.set_groups(third.lease, [])  # the record says otherwise than the filter
        await in_thread(talk, one, other)
        await apart(one, third)
        expected = {(one.lease.ip, other.lease.ip), (other.lease.ip, one.lease.ip)}
        assert await pairs(second) == expected
    finally:
        await second.stop(if_unused=False)
        await second.close()


async def test_a_network_of_an_older_banger_learns_of_groups(guests, short_dir, network_mode):
    """Its filter has no such set, and its bridge does not answer for others."""
    if network_mode == "bridge":
        pytest.skip("the same code")
    one, other = await guests.linux(), await guests.linux()
    network = guests.network
    async with network._space._inside() as inside:
        for text in ("flush chain bridge banger questions", "flush chain bridge banger ipv4",
                     "flush chain inet banger forward", "delete set bridge banger peers", "delete set inet banger peers"):  # fmt: skip
            argv = [*enter(inside), "nft", text]
            await run(argv, timeout_s=10, pass_fds=inside.descriptors)
    await network.close()
    second = user.UserNetwork(short_dir, short_dir)
    await second.start()
    try:
        for each in (one, other):
            second.adopted(each.lease)
            await second.set_groups(each.lease, ["web"])
        await in_thread(talk, one, other)
        assert await in_thread(one.tcp_echo, BEYOND) == b"hello"
    finally:
        await second.stop(if_unused=False)
        await second.close()


# Names


def ask(guest, name, server=None):
    """The rcode and the addresses that a guest is told."""
    query = dns.message.make_query(name, "A")
    said = dns.message.from_wire(guest.udp_echo(server or guest.lease.names, query.to_wire(), 53))
    assert said.id == query.id
    return said.rcode(), [item.address for rrset in said.answer for item in rrset]


@pytest.fixture
def known(network):
    """Names as a daemon knows them: whoever asks is told of all, and the test hears who asked."""
    asked, names = [], {}

    def lookup(mode, asker, name):
        asked.append((mode, asker, name))
        return names.get(name)

    network.answer_names(lookup)
    return asked, names


async def test_a_guest_asks_for_names_as_itself_and_other_names_go_elsewhere(
    known, guests, network_mode, own_host
):
    asked, names = known
    one = await guests.linux(groups=["web"], outward=False)
    names["web"] = ["10.1.2.3"]
    assert await in_thread(ask, one, "web.banger") == (dns.rcode.NOERROR, ["10.1.2.3"])
    assert asked == [(network_mode, one.lease.ip, "web")]
    assert await in_thread(ask, one, "db.banger") == (dns.rcode.NXDOMAIN, [])
    assert await in_thread(ask, one, "www.example.org") == (dns.rcode.REFUSED, [])


def getent(guest, directory, name):
    """What glibc's resolver finds in the guest, with the name servers that such a guest is given."""
    servers = directory / "resolv.conf"
    lines = [f"nameserver {guest.lease.names}", f"nameserver {guest.lease.dns}", "options timeout:30"]  # fmt: skip
    servers.write_text("".join(f"{line}\n" for line in lines))
    words = f"mount --bind {servers} /etc/resolv.conf && timeout 25 getent ahostsv4 {name}"
    argv = ["unshare", "--mount", "--", "sh", "-c", words]
    done = guest.namespace.run(functools.partial(subprocess.run, argv, capture_output=True))
    return done.stdout.decode().split()


@pytest.mark.parametrize("network_mode", ["user"])
async def test_glibc_asks_for_peers_here_and_for_others_there(known, guests, own_host, short_dir):
    if name_servers()[0].startswith("127."):
        pytest.skip("the name server of this host is on its loopback")
    guest = await guests.linux(groups=["web"])
    known[1]["web"] = [guest.lease.ip]
    found = await in_thread(getent, guest, short_dir, "web.banger")
    assert found[0] == guest.lease.ip
    began = time.monotonic()
    await in_thread(getent, guest, short_dir, "www.example.org")
    assert any(b"example" in heard for heard in own_host.world.heard)
    assert not any(b"banger" in heard for heard in own_host.world.heard)
    await guests.network.close()  # no daemon
    try:
        own_host.world.heard.clear()
        await in_thread(getent, guest, short_dir, "www.example.com")
        assert any(b"example" in heard for heard in own_host.world.heard)
    finally:
        await guests.network.start()
    assert time.monotonic() - began < 25  # no server was waited for


async def test_without_a_daemon_a_resolver_is_sent_on_at_once(known, guests):
    """The kernel refuses, so that a resolver need not wait until it gives the server up."""
    one = await guests.linux(groups=["web"])
    known[1]["web"] = ["10.1.2.3"]
    await in_thread(ask, one, "web.banger")
    await guests.network.close()
    try:
        with pytest.raises(ConnectionRefusedError):
            await in_thread(refused, one)
    finally:
        await guests.network.start()
    assert (await in_thread(ask, one, "web.banger"))[1] == ["10.1.2.3"]


def refused(guest):
    with guest.namespace.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.settimeout(30)
        opened.connect((guest.lease.names, 53))
        opened.send(dns.message.make_query("web.banger", "A").to_wire())
        opened.recv(512)


async def test_nonsense_from_a_guest_is_answered_as_such_or_not_at_all(known, guests):
    one = await guests.linux(groups=["web"])
    known[1]["web"] = ["10.1.2.3"]
    with one.namespace.run(socket.socket, socket.AF_INET, socket.SOCK_DGRAM) as opened:
        for junk in (b"", b"x", bytes(12), b"\xff" * 512, bytes(65507)):
            opened.sendto(junk, (one.lease.names, 53))
    assert (await in_thread(ask, one, "web.banger"))[1] == ["10.1.2.3"]


async def test_a_socket_for_names_that_cannot_be_had_is_said_and_costs_nothing_else(
    known, guests, monkeypatch
):
    async def refuse(_):
        raise OSError(24, "Too many open files")

    monkeypatch.setattr("banger.network.space.Space.udp_socket", refuse)
    one = await guests.linux(groups=["web"])
    assert await in_thread(one.tcp_echo, BEYOND) == b"hello"
    assert "guests are told no names" in (await guests.network.describe())["detail"]
