"""TAPs that are made ahead: they wait closed, cost a VM nothing but a name, survive the daemon, and are nobody else's."""

import asyncio
import os

import msgspec
import pytest

from banger.host.exec import run
from banger.host.namespaces import enter
from banger.network import space
from banger.network.control import ask, ask_one
from banger.network.plan import BRIDGE
from banger.network.record import read_record
from banger.network.taps import POOL
from banger.network.user import UserNetwork
from tests.framework.net_host import BEYOND, ECHO_PORT, Wire, ipv4, udp
from tests.host.conftest import filled

NAMES = [f"{POOL}{number}" for number in range(4)]


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(space, "_REFILL_S", 0.01)


async def in_thread(work, *arguments, **named):
    return await asyncio.to_thread(work, *arguments, **named)


async def up(network):
    """The network, running and with its pool full, before any VM."""
    async with network._lock:
        await network._up()
    await filled(network._space)
    return network._space


def indexes(running):
    """The kernel's numbers of the bridge's ports by name: a number is a device, whatever it is called."""
    route = running._route
    return {name: route.index(name) for name in route.ports(BRIDGE)}


async def inside(running, *argv):
    async with running._inside() as pair:
        done = await run([*enter(pair), *argv], timeout_s=10, pass_fds=pair.descriptors)
    return done.stdout.decode()


async def test_a_pool_that_could_not_be_filled_is_filled_when_it_can(network, guests, monkeypatch):
    """On a busy host the holder may not answer in time; nobody need attach for it to be tried again."""
    running = await up(network)
    fill, failed = running.taps.fill, []

    async def not_at_first():
        if len(failed) < 2:
            failed.append(True)
            raise TimeoutError("the network's holder did not answer")
        await fill()

    monkeypatch.setattr(running.taps, "fill", not_at_first)
    await guests.linux()
    await filled(running)
    assert len(failed) == 2
    async with asyncio.timeout(30):
        while running.trouble:
            await asyncio.sleep(0.01)


async def test_a_vm_s_tap_is_one_of_the_pool_renamed_and_the_pool_is_filled_again(network, guests):
    running = await up(network)
    before = indexes(running)
    assert sorted(before) == NAMES
    guest = await guests.linux()
    now = indexes(running)
    assert now["tap0"] == before[NAMES[0]]
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    await filled(running)
    now = indexes(running)
    assert sorted(now) == [*NAMES, "tap0"]
    assert now[NAMES[0]] not in before.values()  # made after the guest had its own


async def test_a_tap_of_the_pool_goes_with_who_has_it_as_any_other(network, guests):
    running = await up(network)
    attached = await guests.attach()
    assert running.guests() == ["tap0"]
    os.close(attached.tap_fd)
    async with asyncio.timeout(30):
        while running.guests():
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("network_mode", ["user", "bridge"])
async def test_one_that_is_opened_by_its_name_is_of_the_pool_too_and_stays(network):
    running = await up(network)
    before = indexes(running)
    lease, _ = await network.settle(network.plan_lease("a" * 12, []), "auto")
    attached = await network.attach(lease, "auto", named=True)
    for descriptor in attached.descriptors:
        os.close(descriptor)
    assert indexes(running)["tap0"] == before[NAMES[0]]
    tap = await ask_one(network._files.control, "tap", name="tap0")  # as its VMM does
    os.close(tap)
    assert running.guests() == ["tap0"]
    await network.detach(lease)
    assert running.guests() == []


async def test_more_vms_at_once_than_there_are_taps_all_get_one(network, guests):
    running = await up(network)
    wires = [await guests.wire(resolved=False) for _ in range(10)]
    assert len(set(running.guests())) == 10
    for wire in wires:
        await in_thread(wire.resolve)


async def test_in_the_pool_nothing_passes_even_if_somebody_opens_and_raises_it(
    network, guests, own_host
):
    running = await up(network)
    assert running._route.ports(BRIDGE) == dict.fromkeys(NAMES, False)
    assert "isolated on" in await inside(running, "ip", "-d", "link", "show", NAMES[0])
    wire = await guests.wire()
    await filled(running)
    tap = await ask_one(network._files.control, "tap", name=NAMES[1])
    running._route.set_link(NAMES[1], up=True)
    try:
        intruder = Wire.__new__(Wire)
        intruder.tap, intruder.lease, intruder.gateway_mac = tap, wire.lease, wire.gateway_mac
        unused = network._plan.lease("", 9)
        for mac, address in ((wire.lease.mac, wire.lease.ip), (unused.mac, unused.ip)):
            intruder.send_ipv4(ipv4(address, BEYOND, 17, udp(ECHO_PORT, b"poached")), source=mac)
        wire.send_ipv4(ipv4(wire.lease.ip, BEYOND, 17, udp(ECHO_PORT, b"allowed")))
        await in_thread(wire.wait_for, lambda frame: frame.endswith(b"allowed"))
        assert b"poached" not in own_host.world.heard
        assert list(intruder.frames(0.1)) == []
    finally:
        os.close(tap)


async def test_the_next_daemon_finds_it(network, guests, short_dir):
    running = await up(network)
    guest = await guests.linux()
    await filled(running)
    before = indexes(running)
    await network.close()
    second = UserNetwork(short_dir, short_dir, pool=4)
    await second.start()
    try:
        await filled(second._space)
        assert indexes(second._space) == before
        lease = second.plan_lease("b" * 12, [guest.lease])
        attached = await second.attach(lease, "auto", named=False)
        assert indexes(second._space)[attached.tap_name] == before[NAMES[0]]
        os.close(attached.tap_fd)
    finally:
        await second.stop(if_unused=False)
        await second.close()


@pytest.mark.parametrize("size", [0, 2, 6])
async def test_a_daemon_that_wants_another_size_gets_it(network, guests, short_dir, size):
    await up(network)
    wire = await guests.wire()
    await filled(network._space)
    await network.close()
    second = UserNetwork(short_dir, short_dir, pool=size)
    await second.start()
    try:
        await filled(second._space)
        names = sorted(name for name in indexes(second._space) if name.startswith(POOL))
        assert len(names) == size
        await in_thread(wire.resolve)
    finally:
        await second.stop(if_unused=False)
        await second.close()


async def test_one_that_a_daemon_was_making_when_it_was_killed_is_finished(network):
    running = await up(network)
    running._route.delete_link(NAMES[2])
    await ask(network._files.control, "uplink", name=NAMES[2])  # and no more than that
    running.taps.find()
    await running.taps.fill()
    assert sorted(indexes(running)) == NAMES


async def test_a_network_that_nobody_uses_ends_with_its_pool(network, guests):
    running = await up(network)
    holder = running.holder.pid
    await network.stop()
    assert not os.path.exists(f"/proc/{holder}")


async def test_a_holder_of_an_older_banger_makes_none(network, guests, short_dir, monkeypatch):
    await up(network)
    wire = await guests.wire()
    await network.close()
    path = network._files.record
    record = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode({**record, "protocol": 2}))
    asked = space.ask

    async def older(path, op, **options):
        reply, descriptors = await asked(path, op, **options)
        return ({**reply, "protocol": 2} if op == "hello" else reply), descriptors

    monkeypatch.setattr(space, "ask", older)
    second = UserNetwork(short_dir, short_dir, pool=4)
    await second.start()
    try:
        assert read_record(path).protocol == 2
        await asyncio.sleep(0.1)
        assert second._space.taps.pooled == ()
        lease = second.plan_lease("b" * 12, [wire.lease])
        attached = await second.attach(lease, "auto", named=False)
        assert attached.tap_fd is not None
        os.close(attached.tap_fd)
    finally:
        await second.stop(if_unused=False)
        await second.close()


# Links of others


@pytest.mark.parametrize("kind", ["bridge", "open TAP", "raised port"])
async def test_somebody_else_s_link_with_a_name_of_the_pool_is_left_alone(network, guests, kind):
    running = await up(network)
    for name in (NAMES[0], NAMES[3]):
        running._route.delete_link(name)
    tap = None
    if kind == "bridge":
        await inside(running, "ip", "link", "add", NAMES[0], "type", "bridge")
    else:
        tap = await ask_one(network._files.control, "tap", name=NAMES[0])
        if kind == "raised port":
            await inside(running, "ip", "link", "set", NAMES[0], "master", BRIDGE, "up")
    index = running._route.index(NAMES[0])
    running.taps.find()
    await running.taps.fill()
    assert sorted(running.taps.pooled) == [*NAMES[1:], f"{POOL}4"]
    for _ in range(6):
        guest = await guests.linux()
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    assert running._route.index(NAMES[0]) == index
    if tap is not None:
        os.close(tap)


async def test_a_tap_that_somebody_took_from_the_pool_is_passed_by(network, guests):
    running = await up(network)
    taken = await ask_one(network._files.control, "tap", name=NAMES[0])
    guest = await guests.linux()
    assert running.guests() == ["tap0"]
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    assert running._route.exists(NAMES[0])
    os.close(taken)


async def test_a_pool_that_vanished_delays_nobody(network, guests):
    running = await up(network)
    for name in NAMES:
        running._route.delete_link(name)
    guest = await guests.linux()
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    await filled(running)


async def test_what_keeps_it_from_being_filled_is_said_until_it_is_full(
    network, guests, monkeypatch
):
    running = await up(network)
    with monkeypatch.context() as patched:
        patched.setattr("banger.network.taps.ask", _refuse)
        await guests.attach_and_close()
        async with asyncio.timeout(30):
            while not running.trouble:
                await asyncio.sleep(0.01)
        assert "TAPs cannot be made ahead" in (await network.describe())["detail"]
    await guests.attach_and_close()
    await filled(running)
    assert not running.trouble


async def _refuse(*_, **__):
    raise OSError(24, "Too many open files")


async def test_attaching_makes_no_device_and_runs_no_nft(network, guests, monkeypatch):
    running = await up(network)
    before, texts = indexes(running), []
    apply = space.nft.apply

    async def noted(text, *where):
        texts.append(text)
        await apply(text, *where)

    monkeypatch.setattr(space.nft, "apply", noted)
    monkeypatch.setattr(space, "_REFILL_S", 60)
    wires = [await guests.wire(resolved=False) for _ in NAMES]
    assert sorted(indexes(running).values()) == sorted(before.values())
    await network.detach(wires[0].lease)
    await guests.wire(resolved=False)
    assert texts == []
    await guests.wire(resolved=False)  # of the pool no more, but still known to the filter
    assert texts == []
    await network.detach(wires[1].lease)
    again = await network.attach(wires[1].lease, "auto", named=False, outward=False)
    os.close(again.tap_fd)
    assert len(texts) == 1  # what only this guest is costs one transaction
