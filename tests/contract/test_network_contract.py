"""What a network promises (`engine.ports.Network`): one suite for the fake and for the namespace of our own."""

import contextlib
import os
import shutil
import socket
import tempfile
from pathlib import Path

import pytest

from banger.host import probe
from banger.host.namespaces import probe_namespaces
from banger.model.errors import HostLacksError
from banger.model.spec import ForwardProtocol
from banger.network.bridge import BridgeNetwork
from banger.network.modes import DaemonNetwork
from banger.network.uplinks.client import HostUplinks
from banger.network.uplinks.service import UplinkService
from banger.network.uplinks.slots import SlotPlan
from banger.network.user import UserNetwork
from tests.framework.fake_world import FakeNetwork, World
from tests.framework.net_host import OwnHost


@pytest.fixture(params=["fake", "user", "bridge"])
async def network(request, tmp_path):
    if request.param == "fake":
        yield FakeNetwork(World(tmp_path))
        return
    answer = probe_namespaces()
    if not answer:
        pytest.skip(f"no namespaces: {answer.why}; {answer.hint}")
    if request.param == "bridge" and not probe.root():
        pytest.skip(f"uplinks in this process need root: {probe.root().why}")
    directory = Path(tempfile.mkdtemp(prefix="bgn-", dir="/tmp"))
    host = OwnHost() if request.param == "bridge" else contextlib.nullcontext()
    with contextlib.closing(host) if request.param == "bridge" else host:
        made = make(directory, request.param)
        await made.start()
        yield made
        await made.stop(if_unused=False)
        await made.close()
    shutil.rmtree(directory)


def make(directory, mode):
    """The daemon's network, whose ``auto`` is user mode or, if that is asked for, is answered in bridge mode."""
    uplinks = HostUplinks(directory / "none.sock", UplinkService(directory / "helper", SlotPlan()))
    made = DaemonNetwork(
        UserNetwork(directory, directory), BridgeNetwork(directory, directory, uplinks), uplinks
    )
    made.asked_for = mode
    return made


async def settled(network, vm_id="a" * 12):
    """A lease of the mode under test."""
    lease, _ = await network.settle(network.plan_lease(vm_id, []), mode_of(network))
    return lease


def mode_of(network):
    """What is asked for: the fake has only ``user``."""
    return getattr(network, "asked_for", "user")


def release(attached):
    if attached.tap_fd is not None:
        os.close(attached.tap_fd)


async def test_leases_do_not_share_anything(network):
    taken = []
    for number in range(20):
        taken.append(network.plan_lease(f"{number:012x}", taken))
    for key in ("vm_id", "index", "mac", "ip"):
        assert len({getattr(lease, key) for lease in taken}) == 20
    assert len({(lease.gateway, lease.dns, lease.prefix_length) for lease in taken}) == 1


async def test_the_smallest_free_index_is_used_again(network):
    taken = [network.plan_lease("a" * 12, [])]
    taken.append(network.plan_lease("b" * 12, taken))
    assert network.plan_lease("c" * 12, taken[1:]).index == taken[0].index


async def test_a_guest_is_attached_with_its_lease(network):
    lease = await settled(network)
    attached = await network.attach(lease, mode_of(network), named=False)
    assert (attached.mode, attached.lease, attached.warning) == (mode_of(network), lease, "")
    release(attached)
    await network.detach(lease)


async def test_detaching_is_idempotent_also_for_what_was_never_attached(network):
    lease = await settled(network)
    await network.detach(lease)
    release(await network.attach(lease, mode_of(network), named=False))
    for _ in range(2):
        await network.detach(lease)


async def test_a_survey_tells_who_has_a_place_and_takes_what_is_kept_ready_for_nothing_odd(network):
    lease = await settled(network)
    other = network.plan_lease("b" * 12, [lease])
    release_later = await network.attach(lease, mode_of(network), named=False)
    survey = await network.survey(lambda: [lease, other])
    assert (survey.attached, survey.strays) == ({lease.vm_id}, ())
    release(release_later)
    await network.detach(lease)
    assert (await network.survey(lambda: [lease, other])).attached == frozenset()


async def test_a_link_that_belongs_to_no_lease_is_found_and_can_be_removed(network):
    lease = await settled(network)
    await network.attach(lease, mode_of(network), named=True)
    (stray,) = (await network.survey(list)).strays
    assert stray.process is None
    await network.end_stray(stray, lambda: [lease])
    assert (await network.survey(list)).strays == (stray,)
    for _ in range(2):
        await network.end_stray(stray, list)
    assert (await network.survey(list)).strays == ()
    await network.detach(lease)


async def test_settling_keeps_what_makes_a_vm_itself(network):
    lease = network.plan_lease("a" * 12, [])
    settled_lease, mtu = await network.settle(lease, mode_of(network))
    assert mtu >= 1500
    for key in ("vm_id", "index", "mac"):
        assert getattr(settled_lease, key) == getattr(lease, key)
    assert (await network.settle(settled_lease, mode_of(network)))[0] == settled_lease
    assert (await network.settle(settled_lease, "none"))[0] == settled_lease


async def test_none_has_no_nic(network):
    attached = await network.attach(network.plan_lease("a" * 12, []), "none", named=False)
    assert (attached.mode, attached.tap_fd) == ("none", None)


async def test_dialing_a_guest_that_is_not_there_is_an_os_error(network):
    with pytest.raises(ConnectionRefusedError):
        await network.dial(network.plan_lease("a" * 12, []), 22)


async def test_udp_has_a_way_to_a_guest_that_is_there_and_to_no_other(network):
    lease = network.plan_lease("a" * 12, [])
    with pytest.raises(ConnectionRefusedError):
        await network.dial(lease, 53, protocol=ForwardProtocol.UDP)
    attached = await network.attach(lease, "auto", named=False)
    with await network.dial(lease, 53, protocol=ForwardProtocol.UDP) as opened:
        assert opened.type == socket.SOCK_DGRAM
        assert opened.gettimeout() == 0.0
    release(attached)
    await network.detach(lease)


async def test_the_way_outside_may_be_changed_while_a_guest_is_attached(network):
    lease = network.plan_lease("a" * 12, [])
    with pytest.raises(HostLacksError):
        await network.set_outward(lease, outward=False)
    attached = await network.attach(lease, "auto", named=False)
    for outward in (False, False, True, True):
        await network.set_outward(lease, outward=outward)
    release(attached)
    await network.detach(lease)


async def test_groups_may_be_changed_while_a_guest_is_attached(network):
    lease = network.plan_lease("a" * 12, [])
    with pytest.raises(HostLacksError):
        await network.set_groups(lease, ["web"])
    attached = await network.attach(lease, "auto", named=False, groups=["web"])
    for groups in (["web"], ["web", "db"], [], []):
        await network.set_groups(lease, groups)
    release(attached)
    await network.detach(lease)


async def test_traffic_is_told_of_a_guest_that_is_attached_and_of_no_other(network):
    lease = await settled(network)
    assert network.traffic(lease) is None
    attached = await network.attach(lease, mode_of(network), named=False)
    told = network.traffic(lease)
    assert told.sent_bytes >= 0
    assert told.received_bytes >= 0
    release(attached)
    await network.detach(lease)
    assert network.traffic(lease) is None


async def test_it_describes_itself(network):
    described = await network.describe()
    assert described["mode"] == "user"
    assert described["detail"]


async def test_stopping_and_closing_twice_is_fine(network):
    await network.stop()
    await network.stop()
    await network.close()
    await network.close()
