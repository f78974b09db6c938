"""Datagrams pass between a loopback port and a guest as they are, each client in a flow of its own, and nothing grows without bound."""

import asyncio
import contextlib
import os
import socket
import threading
import time

import pytest

from banger.model.errors import GuestNotReadyError, HostLacksError, RefusedError
from banger.model.spec import ForwardProtocol
from banger.network import datagrams, forward
from banger.network.forward import Relays

UDP = ForwardProtocol.UDP


class Echo:
    """A guest's service: answers with what it was sent, and remembers who sent it."""

    def __init__(self, address=("127.0.0.1", 0)):
        self.peers, self.heard = [], []
        self._opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._opened.bind(address)
        self.address = self._opened.getsockname()
        asyncio.get_running_loop().add_reader(self._opened, self._heard)

    def _heard(self):
        data, peer = self._opened.recvfrom(70000)
        self.heard.append(data)
        if peer not in self.peers:
            self.peers.append(peer)
        with contextlib.suppress(BlockingIOError):
            self._opened.sendto(data, peer)

    def close(self):
        asyncio.get_running_loop().remove_reader(self._opened)
        self._opened.close()


class Client:
    """A socket of the host's that speaks to a forwarded port."""

    def __init__(self, port):
        self._opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._opened.connect(("127.0.0.1", port))

    def send(self, data):
        self._opened.send(data)

    async def receive(self, timeout_s=30):
        async with asyncio.timeout(timeout_s):
            return await asyncio.get_running_loop().sock_recv(self._opened, 70000)

    async def ask(self, data):
        self.send(data)
        return await self.receive()

    def close(self):
        self._opened.close()


@pytest.fixture
async def guest():
    echo = Echo()
    yield echo
    echo.close()


def dialing(address):
    async def dial():
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        opened.connect(address)
        return opened

    return dial


@pytest.fixture
async def relays():
    made = Relays(max_connections=4)
    yield made
    await made.close()


@pytest.fixture
async def clients():
    """Makes clients; closes them."""
    made = []

    def client(port):
        made.append(Client(port))
        return made[-1]

    yield client
    for each in made:
        each.close()


def relay(relays, port):
    return relays._ports[UDP, port]


async def until(condition, timeout_s=30):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


@pytest.mark.parametrize("size", [0, 1, 1472, 9000, 65507])
async def test_a_datagram_of_any_size_passes_both_ways_unchanged(relays, guest, clients, size):
    client = clients(await relays.add(0, dialing(guest.address), protocol=UDP))
    data = os.urandom(size)
    assert await client.ask(data) == data
    assert guest.heard == [data]


async def test_every_client_has_a_flow_of_its_own_and_gets_its_own_answers(relays, guest, clients):
    port = await relays.add(0, dialing(guest.address), protocol=UDP)
    three = [clients(port) for _ in range(3)]
    for round_number in range(2):
        for number, client in enumerate(three):
            client.send(b"%d %d" % (number, round_number))
        for number, client in enumerate(three):
            assert await client.receive() == b"%d %d" % (number, round_number)
    assert len(guest.peers) == 3
    assert relay(relays, port).flows == 3


async def test_what_comes_while_a_flow_is_opened_waits_in_order_and_within_bounds(
    relays, guest, clients
):
    go = asyncio.Event()

    async def slow():
        await go.wait()
        return await dialing(guest.address)()

    port = await relays.add(0, slow, protocol=UDP)
    client = clients(port)
    count = datagrams.MAX_WAITING + 5
    for number in range(count):
        client.send(b"%d" % number)
    await until(lambda: relay(relays, port).dropped == 5)
    go.set()
    for number in range(datagrams.MAX_WAITING):
        assert await client.receive() == b"%d" % number


async def test_what_waits_for_a_guest_is_bounded_for_a_port_as_a_whole(
    relays, guest, clients, monkeypatch
):
    """However many clients there are, and however many of them begin at once."""
    monkeypatch.setattr(datagrams, "MAX_WAITING_BYTES", 100_000)
    monkeypatch.setattr(datagrams, "MAX_OPENING", 2)
    go, opening, most = asyncio.Event(), 0, 0

    async def slow():
        nonlocal opening, most
        opening += 1
        most = max(most, opening)
        await go.wait()
        opening -= 1
        return await dialing(guest.address)()

    port = await relays.add(0, slow, protocol=UDP)
    many = [clients(port) for _ in range(4)]
    for client in many:
        client.send(bytes(40_000))
    await until(lambda: relay(relays, port).dropped == 2)
    assert relay(relays, port).waiting_bytes == 80_000
    go.set()
    for client in many[:2]:
        assert len(await client.receive()) == 40_000
    assert (most, relay(relays, port).waiting_bytes) == (2, 0)
    await until(lambda: opening == 0)


async def test_a_new_client_takes_the_place_of_the_one_that_was_silent_longest(
    relays, guest, clients
):
    port = await relays.add(0, dialing(guest.address), protocol=UDP)
    first, *others = [clients(port) for _ in range(4)]
    for client in (first, *others):
        await client.ask(b"x")
    await first.ask(b"again")
    assert await clients(port).ask(b"fifth") == b"fifth"
    assert relay(relays, port).flows == 4
    before = len(guest.peers)
    await first.ask(b"kept")
    assert len(guest.peers) == before
    await others[0].ask(b"in a new flow")
    assert len(guest.peers) == before + 1


class Clock:
    """The loop, with a time that is the test's: whoever is held up for long is not silent."""

    def __init__(self):
        self.now = 0.0

    def time(self):
        return self.now

    def __getattr__(self, name):
        return getattr(asyncio.get_running_loop(), name)


async def test_a_silent_flow_ends_and_its_client_may_begin_anew(guest, clients):
    listener = forward.listen(0, UDP)
    served = datagrams.Datagrams(listener, dialing(guest.address), 4, idle_s=0.2)
    served._loop = clock = Clock()
    client = clients(listener.getsockname()[1])
    for _ in range(3):
        await client.ask(b"alive")
        clock.now += 0.12
        await asyncio.sleep(0.12)
    assert len(guest.peers) == 1
    clock.now += 0.2
    await until(lambda: served.flows == 0)
    assert await client.ask(b"back") == b"back"
    assert len(guest.peers) == 2
    await served.close()


async def test_a_guest_where_nobody_listens_costs_a_datagram_and_no_more(relays, clients):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as free:
        free.bind(("127.0.0.1", 0))
        address = free.getsockname()
    port = await relays.add(0, dialing(address), protocol=UDP)
    client = clients(port)
    for _ in range(3):  # the kernel answers each with an ICMP message
        client.send(b"anybody?")
        await asyncio.sleep(0.03)
    echo = Echo(address)
    assert await client.ask(b"now") == b"now"
    echo.close()


@pytest.mark.parametrize(
    "error", [ConnectionRefusedError(), TimeoutError(), GuestNotReadyError("no agent")]
)
async def test_a_guest_that_cannot_be_reached_is_tried_again_only_after_a_while(
    relays, guest, clients, monkeypatch, error
):
    loop, put_off, calls = asyncio.get_running_loop(), [], 0
    call_later = loop.call_later

    def later(delay_s, *what):  # the while ends when the test says so, which may be held up in it
        if delay_s == datagrams.FAILED_S:
            put_off.append(what)
            return None
        return call_later(delay_s, *what)

    monkeypatch.setattr(loop, "call_later", later)

    async def dial():
        nonlocal calls
        calls += 1
        if calls == 1:
            raise error
        return await dialing(guest.address)()

    port = await relays.add(0, dial, protocol=UDP)
    client = clients(port)
    for _ in range(50):
        client.send(b"lost")
        await asyncio.sleep(0.002)
    assert calls == 1
    ((forget, flow),) = put_off
    forget(flow)
    assert relay(relays, port).flows == 0
    assert await client.ask(b"found") == b"found"


async def test_a_flood_holds_up_nobody_else_and_takes_no_memory(relays, guest, clients):
    """The flood comes from another thread, as fast as it can; meanwhile the daemon's other work goes on."""
    port = await relays.add(0, dialing(guest.address), protocol=UDP)
    flooding, calm = clients(port), clients(port)
    await calm.ask(b"here")
    ended = threading.Event()

    def flood():
        while not ended.is_set():
            with contextlib.suppress(BlockingIOError):
                flooding.send(bytes(1000))

    task = asyncio.create_task(asyncio.to_thread(flood))
    try:
        await until(lambda: relay(relays, port).flows == 2)
        longest = 0.0
        for _ in range(100):
            began = time.thread_time()  # what a turn costs, not for how long the host held it up
            await asyncio.sleep(0)
            longest = max(longest, time.thread_time() - began)
            guest.heard.clear()
        assert longest < 0.5
        assert relay(relays, port).flows == 2
    finally:
        ended.set()
        await task
    async with asyncio.timeout(30):
        while True:
            calm.send(b"after")
            with contextlib.suppress(TimeoutError):
                if await calm.receive(0.5) == b"after":
                    break


async def test_a_port_of_udp_and_one_of_tcp_are_two(relays, guest):
    port = await relays.add(0, dialing(guest.address), protocol=UDP)
    assert await relays.add(port, dialing(guest.address)) == port
    assert relays.ports == [port, port]
    await relays.remove(port)
    assert relays.ports == [port]
    await relays.remove(port, protocol=UDP)
    await relays.remove(port, protocol=UDP)
    assert relays.ports == []


async def test_a_taken_port_is_refused_also_where_another_would_share_it(relays, guest):
    port = await relays.add(0, dialing(guest.address), protocol=UDP)
    with pytest.raises(RefusedError, match=f"{port}/udp") as caught:
        await relays.add(port, dialing(guest.address), protocol=UDP)
    assert f"ss -ulnp 'sport = :{port}'" in caught.value.hint
    with pytest.raises(RefusedError):
        relays.free_port(UDP, port)
    assert relays.free_port(ForwardProtocol.TCP, port) == port


async def test_a_port_that_we_may_not_have_is_said(monkeypatch):
    class Forbidden(socket.socket):
        def bind(self, address):
            raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(forward.socket, "socket", Forbidden)
    with pytest.raises(HostLacksError, match="port 53/udp of") as caught:
        await Relays().add(53, dialing(("127.0.0.1", 1)), protocol=UDP)
    assert "above 1023" in caught.value.hint


async def test_removing_a_port_frees_it_and_closes_every_flow(relays, guest, clients):
    before = len(os.listdir("/proc/self/fd"))
    port = await relays.add(0, dialing(guest.address), protocol=UDP)
    client = clients(port)
    await client.ask(b"x")
    clients(port).send(b"in opening")
    await relays.remove(port, protocol=UDP)
    assert len(os.listdir("/proc/self/fd")) == before + 2
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", port))
