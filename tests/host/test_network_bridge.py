"""Bridge mode: what it adds to user mode, how it comes and goes, and what it says where it cannot be."""

import asyncio
import os
import shutil
import socket

import pytest

from banger.host import proc
from banger.model.errors import HostLacksError, RefusedError
from banger.network.bridge import BridgeNetwork
from banger.network.modes import DaemonNetwork
from banger.network.uplinks.client import HostUplinks
from banger.network.uplinks.service import UplinkService
from banger.network.uplinks.slots import SlotPlan
from banger.network.user import UserNetwork
from tests.framework.as_user import as_user
from tests.framework.helper_host import STRANGER, host_state, links, running_helper
from tests.framework.net_host import BEYOND, LinuxGuest, ip
from tests.host.conftest import least_ms


@pytest.fixture
def network_mode():
    return "bridge"


async def in_thread(work, *arguments, **named):
    return await asyncio.to_thread(work, *arguments, **named)


async def until(condition, timeout_s=30):
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def said_to(address, port, text=b"hello"):
    """From the host, by address."""
    with socket.create_connection((address, port), timeout=30) as opened:
        opened.sendall(text)
        return opened.getsockname()[0]


async def test_the_host_reaches_a_guest_by_its_address(guests):
    guest = await guests.linux()
    with guest.listen(8000) as listening:
        source = await in_thread(said_to, guest.lease.ip, 8000)
        accepted, peer = await in_thread(listening.accept)
        with accepted:
            assert accepted.recv(5) == b"hello"
    assert peer[0] == source  # nothing is translated on the way
    assert guests.network._space.plan.uplink_gateway == source


async def test_other_users_of_the_host_reach_no_guest(guests):
    guest = await guests.linux()
    with guest.listen(8000):
        with pytest.raises(AssertionError, match=r"No route to host|Permission denied"):
            as_user(STRANGER, said_to, guest.lease.ip, 8000)
        await in_thread(said_to, guest.lease.ip, 8000)


async def test_a_closed_guest_is_reached_by_address_too(guests):
    guest = await guests.linux(outward=False)
    with guest.listen(8000):
        await in_thread(said_to, guest.lease.ip, 8000)
        with pytest.raises(OSError, match="No route to host"):
            await in_thread(guest.tcp_echo, BEYOND)


async def test_what_comes_from_beyond_the_host_does_not_reach_a_guest(guests, own_host):
    guest = await guests.linux()
    own_host.beyond.run(ip, "route", "add", "10.115.0.0/16", "via", "198.51.100.1")
    with guest.listen(8000) as listening:
        listening.settimeout(0.5)

        def attempt():
            with socket.socket() as opened:
                opened.settimeout(1)
                return opened.connect_ex((guest.lease.ip, 8000))

        assert await in_thread(own_host.beyond.run, attempt) != 0
        with pytest.raises(TimeoutError):
            await in_thread(listening.accept)


async def test_all_of_it_goes_with_the_network(own_host, namespaces_work, short_dir):
    before = host_state()
    network = bridge(short_dir)
    await network.start()
    tap = await attach(network)
    assert "banger-up1" in links()
    os.close(tap.tap_fd)
    await network.detach(tap.lease)
    await network.stop()
    await network.close()
    await network._uplinks.close()
    assert host_state() == before


def bridge(directory):
    service = UplinkService(directory / "helper", SlotPlan())
    return BridgeNetwork(directory, directory, HostUplinks(directory / "none.sock", service))


async def attach(network, mode="bridge", lease=None):
    plan = network.plan_lease("a" * 12, []) if lease is None else lease
    settled, _ = await network.settle(plan, mode)
    return await network.attach(settled, mode, named=False)


async def test_the_next_daemon_adopts_it_with_its_guests(network, guests, short_dir):
    guest = await guests.linux()
    lease = guest.lease
    holder = network._space.holder
    await network.close()
    await network._uplinks.close()
    next_one = bridge(short_dir)
    await next_one.start()
    try:
        next_one.adopted(lease)
        assert next_one._space.holder == holder
        assert (await next_one.describe())["detail"].endswith(f"namespace of pid {holder.pid}")
        assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
        assert (await next_one.settle(lease, "bridge"))[0] == lease
    finally:
        await next_one.close()
        await next_one._uplinks.close()
        await network.start()  # the fixture ends it


async def test_a_root_daemon_that_was_killed_leaves_rules_until_the_next_starts(
    own_host, namespaces_work, short_dir
):
    before = host_state()
    network = bridge(short_dir)
    await network.start()
    tap = await attach(network)
    holder = network._space.holder
    await network.close()  # a guest is there: nothing ends
    await network._uplinks.close()
    os.close(tap.tap_fd)
    await proc.kill(holder)
    assert host_state() != before
    next_one = bridge(short_dir)
    await next_one.start()
    await until(lambda: host_state() == before)  # the kernel takes its time to remove the link
    await next_one.close()
    await next_one._uplinks.close()


async def test_an_uplink_that_somebody_removes_is_put_back(network, guests):
    guest = await guests.linux()
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
    ip("link", "del", "banger-up1")
    await until(lambda: "banger-up1" in links())
    async with asyncio.timeout(30):
        while True:
            try:
                assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
                break
            except OSError:
                await asyncio.sleep(0.05)


async def test_its_holder_dies_and_the_next_vm_gets_a_new_network(network, guests):
    first = await guests.attach()
    os.close(first.tap_fd)
    await proc.kill(network._space.holder)
    await until(lambda: network._space is None)
    guest = await guests.linux()
    assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"


async def test_a_lease_of_another_network_is_refused(network, guests):
    stale = UserNetwork(network._files.runtime, network._files.logs).plan_lease("b" * 12, [])
    with pytest.raises(RefusedError, match="addresses of another network") as caught:
        await network.attach(stale, "bridge", named=False)
    assert caught.value.hint == "start the VM again"


# The daemon's network: both modes as one


@pytest.fixture
async def daemon_network(own_host, namespaces_work, short_dir):
    made = daemon(short_dir)
    await made.start()
    yield made
    await made.stop(if_unused=False)
    await made.close()


def daemon(directory, socket_path=None):
    service = UplinkService(directory / "helper", SlotPlan())
    uplinks = HostUplinks(socket_path or directory / "none.sock", service)
    return DaemonNetwork(
        UserNetwork(directory, directory), BridgeNetwork(directory, directory, uplinks), uplinks
    )


async def test_auto_is_user_mode_without_a_helper_though_root_could(daemon_network):
    tap = await attach(daemon_network, "auto")
    assert tap.mode == "user"
    assert (await daemon_network.describe())["mode"] == "user"
    os.close(tap.tap_fd)


async def test_a_vm_made_in_one_mode_runs_in_the_other(daemon_network):
    lease = daemon_network.plan_lease("a" * 12, [])
    seen = []
    for mode in ("user", "bridge", "user", "bridge"):
        attached = await attach(daemon_network, mode, lease)
        lease = attached.lease
        assert attached.mode == mode
        guest = LinuxGuest(attached)
        try:
            assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
            with guest.listen(8000) as listening:
                opened = await daemon_network.dial(lease, 8000)
                accepted, _ = await in_thread(listening.accept)
                opened.close()
                accepted.close()
        finally:
            guest.close()
        await daemon_network.detach(lease)
        seen.append((lease.ip, lease.mac, lease.index))
    assert seen[0] == seen[2]
    assert seen[1] == seen[3]
    assert seen[0][0] != seen[1][0]
    assert seen[0][1:] == seen[1][1:]


async def test_both_modes_at_once_for_two_vms(daemon_network):
    one = await attach(daemon_network, "user", daemon_network.plan_lease("a" * 12, []))
    other = await attach(daemon_network, "bridge", daemon_network.plan_lease("b" * 12, [one.lease]))
    assert (one.mode, other.mode) == ("user", "bridge")
    described = await daemon_network.describe()
    assert "user: " in described["detail"]
    assert "bridge: " in described["detail"]
    for each in (one, other):
        os.close(each.tap_fd)


async def test_auto_is_bridge_mode_where_a_helper_answers(own_host, namespaces_work, short_dir):
    directory = short_dir / "daemon"
    directory.mkdir()
    async with running_helper(short_dir) as helper:
        network = daemon(directory, helper.socket)
        await network.start()
        try:
            tap = await attach(network, "auto")
            assert tap.mode == "bridge"
            assert (await network.describe())["mode"] == "bridge"
            guest = LinuxGuest(tap)
            assert await in_thread(guest.tcp_echo, BEYOND) == b"hello"
            guest.close()
            await network.detach(tap.lease)
            ip("addr", "add", "10.115.200.1/24", "dev", "lan0")  # the next one cannot be had
            await network.stop()
            tap = await attach(network, "auto")
            assert tap.mode == "user"
            os.close(tap.tap_fd)
            with pytest.raises(RefusedError, match="in use on this host"):
                await attach(network, "bridge")
        finally:
            await network.stop(if_unused=False)
            await network.close()
            left = proc.find_by_argument(str(directory / "net-bridge" / "holder.sock"))
            assert left == []
            shutil.rmtree(directory)


async def test_many_vms_at_once_are_all_in_bridge_mode(own_host, namespaces_work, short_dir):
    """More than the helper lets one user ask at the same time."""
    directory = short_dir / "daemon"
    directory.mkdir()
    async with running_helper(short_dir) as helper:
        network = daemon(directory, helper.socket)
        await network.start()
        leases = []
        for number in range(50):
            leases.append(network.plan_lease(f"{number:012x}", leases))
        settled = await asyncio.gather(*(network.settle(lease, "auto") for lease in leases))
        assert {mtu for _, mtu in settled} == {1500}
        assert len({lease.ip for lease, _ in settled}) == 50
        await network.stop()
        await network.close()


async def test_without_helper_and_root_bridge_is_refused_with_what_mends_it(
    own_host, short_dir, monkeypatch
):
    monkeypatch.setattr("banger.network.uplinks.client.os.geteuid", lambda: 4801)
    network = daemon(short_dir)
    await network.start()
    with pytest.raises(HostLacksError, match="banger-helper does not run") as caught:
        await network.settle(network.plan_lease("a" * 12, []), "bridge")
    assert caught.value.hint == "sudo banger setup helper"
    await network.close()


async def test_setting_up_and_attaching_in_bridge_mode_are_fast(network, guests):
    cold_ms, warm_ms = await least_ms(network, guests)
    print(f"cold {cold_ms:.0f} ms, a TAP {warm_ms:.1f} ms")
    assert cold_ms < 2000
    assert warm_ms < 300
