"""Forwards and NAT of a VM change while it runs and while it rests, all or nothing, and come back with it."""

import pytest

from banger.engine import forwards
from banger.engine.adjust import Changes
from banger.engine.reconcile import reconcile
from banger.model.errors import (
    BangerError,
    HostLacksError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
)
from banger.model.record import VmRecord
from banger.model.spec import Forward, ForwardProtocol, NetworkMode, VmSpec
from banger.model.state import OperationState, VmState

TCP, UDP = ForwardProtocol.TCP, ForwardProtocol.UDP
WEB, NAMES, ANY = Forward(8080, 80), Forward(5353, 53, UDP), Forward(0, 9000)


async def make(engine, *asked, name="one", start=True, **options):
    spec = VmSpec(disk_bytes=1 << 30, work_bytes=1 << 30, forwards=asked, **options)
    run = engine.create(name, "debian", spec, start=start, ready_s=None)
    record = await run.wait()
    assert record.state is OperationState.SUCCEEDED, record.error
    return engine.resolve(name)


async def add(engine, machine, *more):
    await engine.change(machine, Changes(add=more))


async def take(engine, machine, *keys):
    await engine.change(machine, Changes(remove=keys))


async def finished(engine, record):
    live = engine.context.board.live(record.id)
    return await live.wait() if live else record


def asked(machine):
    return machine.record.spec.forwards


def final(machine):
    """What leads where, without the one to SSH."""
    return {
        (f.protocol, f.guest_port): f.host_port
        for f in machine.record.forwards
        if f.guest_port != 22
    }


def open_ports(machine):
    return sorted(
        f"{f.host_port}/{f.protocol}" if f.protocol is UDP else str(f.host_port)
        for f in machine.relayed
    )


async def test_a_running_vm_takes_forwards_and_gives_them_back(engine, world):
    machine = await make(engine)
    (ssh,) = world.ports
    await add(engine, machine, WEB, NAMES, ANY)
    assert asked(machine) == (WEB, NAMES, ANY)
    assert final(machine) == {(TCP, 80): 8080, (UDP, 53): 5353, (TCP, 9000): 40002}
    assert world.ports == {ssh, 8080, "5353/udp", 40002}
    await take(engine, machine, (UDP, 5353), (TCP, 40002))
    assert asked(machine) == (WEB,)
    assert world.ports == {ssh, 8080}
    assert machine.state is VmState.RUNNING


async def test_a_vm_at_rest_has_its_ports_told_and_opens_them_when_it_starts(engine, world):
    machine = await make(engine, ANY, start=False)
    assert world.ports == set()
    await add(engine, machine, WEB, Forward(0, 53, UDP))
    told = final(machine)
    assert told[TCP, 80] == 8080
    assert told[TCP, 9000]
    assert told[UDP, 53]
    assert world.ports == set()
    await finished(engine, engine.start(machine, None))
    assert final(machine) == told
    assert {8080, told[TCP, 9000], f"{told[UDP, 53]}/udp"} < world.ports
    await finished(engine, engine.stop(machine, None, force=True))
    assert world.ports == set()
    await take(engine, machine, (TCP, told[TCP, 9000]))
    assert (TCP, 9000) not in final(machine)


async def test_what_leads_there_already_is_not_added_twice(engine, world):
    machine = await make(engine, WEB)
    before = set(world.ports)
    await add(engine, machine, WEB, Forward(0, 80), Forward(0, 22))
    assert asked(machine) == (WEB,)
    assert world.ports == before


async def test_a_port_that_leads_elsewhere_is_refused_with_the_way_to_free_it(engine):
    machine = await make(engine, WEB)
    (ssh,) = [f.host_port for f in machine.record.forwards if f.guest_port == 22]
    with pytest.raises(RefusedError, match="leads to port 80") as caught:
        await add(engine, machine, Forward(8080, 81))
    assert caught.value.hint == "banger vm forward one --remove 8080"
    with pytest.raises(RefusedError, match="leads to port 22"):
        await add(engine, machine, Forward(ssh, 81))
    assert asked(machine) == (WEB,)


async def test_a_taken_port_changes_nothing_at_all(engine, world):
    machine = await make(engine, WEB)
    world.foreign_ports = {9090}
    before, record = world.inventory(), machine.record
    with pytest.raises(RefusedError, match="9090"):
        await add(engine, machine, ANY, NAMES, Forward(9090, 90))
    assert (world.inventory(), machine.record) == (before, record)


async def test_a_port_may_lead_elsewhere_in_one_change_or_stay_as_it_was(engine, world):
    machine = await make(engine, WEB)
    before = set(world.ports)
    await engine.change(machine, Changes(forwards=(Forward(8080, 81),)))
    assert final(machine) == {(TCP, 81): 8080}
    assert world.ports == before
    world.foreign_ports = {9090}
    with pytest.raises(RefusedError):
        await engine.change(machine, Changes(forwards=(Forward(8080, 82), Forward(9090, 90))))
    assert final(machine) == {(TCP, 81): 8080}
    assert world.ports == before
    assert set(machine.relayed) == set(machine.record.forwards)


async def test_an_own_forward_to_ssh_stands_in_for_the_one_that_is_always_there(engine, world):
    machine = await make(engine)
    (ssh,) = world.ports
    with pytest.raises(RefusedError, match="SSH") as caught:
        await take(engine, machine, (TCP, ssh))
    assert "2222:22" in caught.value.hint
    await add(engine, machine, Forward(2222, 22))
    assert world.ports == {2222}
    await take(engine, machine, (TCP, 2222))
    assert len(world.ports) == 1
    assert 2222 not in world.ports


async def test_what_is_not_there_cannot_be_removed(engine):
    machine = await make(engine, WEB)
    with pytest.raises(NotFoundError, match="8080/udp") as caught:
        await take(engine, machine, (UDP, 8080))
    assert caught.value.hint == "banger vm forward one"


async def test_of_two_that_lead_to_one_port_the_right_one_ends(engine, world):
    machine = await make(engine, ANY, ANY)
    first, second = [f.host_port for f in machine.record.forwards if f.guest_port == 9000]
    await take(engine, machine, (TCP, first))
    assert second in world.ports
    assert first not in world.ports


async def test_there_may_be_many_but_not_any_number(engine):
    machine = await make(engine, start=False)
    many = [Forward(0, port) for port in range(1, forwards.MAX_FORWARDS + 2)]
    with pytest.raises(RefusedError, match="129 forwards"):
        await add(engine, machine, *[f for f in many if f.guest_port != 22], Forward(0, 9999))


@pytest.mark.parametrize("mode", ["qemu-user", "none"])
async def test_udp_needs_a_network_of_bangers_own(engine, world, mode):
    world.mode = mode
    machine = await make(engine, WEB)
    before = set(world.ports)
    with pytest.raises(RefusedError, match="no UDP") as caught:
        await add(engine, machine, NAMES)
    assert mode in caught.value.what
    assert "agent" in caught.value.detail
    assert world.ports == before
    await add(engine, machine, ANY)


async def test_a_vm_that_was_to_have_udp_does_not_start_where_it_cannot(engine, world):
    world.mode = "qemu-user"
    before = world.inventory()
    spec = VmSpec(disk_bytes=1 << 30, work_bytes=1 << 30, forwards=(NAMES,))
    record = await engine.create("one", "debian", spec, start=True, ready_s=None).wait()
    assert record.error.code == "refused"
    assert world.inventory() == before


async def test_a_network_of_an_older_banger_says_what_helps(engine, world):
    machine = await make(engine)
    world.carries_no_udp = True
    with pytest.raises(HostLacksError, match="older banger"):
        await add(engine, machine, NAMES)
    assert "5353/udp" not in world.ports


async def test_a_vm_without_network_takes_tcp_through_its_agent_and_no_udp(engine):
    machine = await make(engine, network=NetworkMode.NONE)
    assert machine.record.forwards == ()
    await add(engine, machine, WEB)
    assert final(machine) == {(TCP, 80): 8080}
    with pytest.raises(BangerError, match="takes no UDP"):
        await add(engine, machine, NAMES)
    assert asked(machine) == (WEB,)


async def test_nat_changes_at_once_while_the_vm_runs(engine, world):
    machine = await make(engine)
    await engine.change(machine, Changes(nat=False))
    assert world.outward == {machine.id: False}
    assert machine.record.spec.nat is False
    await engine.change(machine, Changes(nat=True, add=(WEB,)))
    assert world.outward == {machine.id: True}
    assert 8080 in world.ports


async def test_nat_and_forwards_change_together_or_not_at_all(engine, world):
    machine = await make(engine)
    world.foreign_ports = {8080}
    before = world.inventory()
    with pytest.raises(RefusedError):
        await engine.change(machine, Changes(nat=False, add=(WEB,)))
    assert world.outward == {machine.id: True}
    assert machine.record.spec.nat is True
    assert world.inventory() == before


async def test_groups_change_at_once_while_the_vm_runs_and_at_rest(engine, world):
    machine = await make(engine)
    await engine.change(machine, Changes(groups=("web", "db")))
    assert world.groups == {machine.id: ("web", "db")}
    world.fail_at = {"groups"}
    with pytest.raises(BangerError, match="told to fail"):
        await engine.change(machine, Changes(groups=()))
    world.fail_at = set()
    assert machine.record.spec.groups == ("web", "db")
    assert world.groups == {machine.id: ("web", "db")}
    await finished(engine, engine.stop(machine, None, force=True))
    await engine.change(machine, Changes(groups=("ci",)))
    world.groups.clear()
    await finished(engine, engine.start(machine, None))
    assert world.groups == {machine.id: ("ci",)}


@pytest.mark.parametrize("groups", [("Web",), ("",), ("-",), ("a" * 33,), ("a", "a"), ("../x",), tuple(f"g{n}" for n in range(17))])  # fmt: skip
async def test_what_is_no_group_is_refused_and_changes_nothing(engine, world, groups):
    machine = await make(engine)
    with pytest.raises(InvalidInputError, match="group"):
        await engine.change(machine, Changes(groups=groups))
    assert world.groups == {machine.id: ()}


async def test_a_vm_without_a_network_is_in_no_group(engine):
    machine = await make(engine, network=NetworkMode.NONE)
    with pytest.raises(InvalidInputError, match="in no group"):
        await engine.change(machine, Changes(groups=("web",)))


async def test_a_filter_that_does_not_obey_leaves_the_record_as_it_was(engine, world):
    machine = await make(engine)
    world.fail_at = {"nat"}
    with pytest.raises(BangerError, match="told to fail"):
        await engine.change(machine, Changes(nat=False))
    assert machine.record.spec.nat is True


async def test_a_record_that_cannot_be_written_leaves_the_host_as_it_was(
    engine, world, monkeypatch
):
    machine = await make(engine)
    before = world.inventory()
    update = engine.context.store.update_vm

    def full(record):
        if record.spec.forwards:
            raise HostLacksError("the state disk is full", hint="df")
        update(record)

    monkeypatch.setattr(engine.context.store, "update_vm", full)
    with pytest.raises(HostLacksError, match="disk is full"):
        await engine.change(machine, Changes(nat=False, add=(WEB, NAMES)))
    assert world.inventory() == before
    assert world.outward == {machine.id: True}
    assert (machine.record.spec.nat, asked(machine)) == (True, ())


async def test_qemus_own_network_cannot_be_told_while_it_runs(engine, world):
    world.mode = "qemu-user"
    machine = await make(engine)
    with pytest.raises(RefusedError, match="cannot change while it runs") as caught:
        await engine.change(machine, Changes(nat=False))
    assert caught.value.hint == "banger vm stop one, then: banger vm set one --no-nat"
    await finished(engine, engine.stop(machine, None, force=True))
    await engine.change(machine, Changes(nat=False))
    assert machine.record.spec.nat is False


async def test_a_paused_vm_takes_them_too_and_one_that_is_busy_does_not(engine, world):
    machine = await make(engine)
    await finished(engine, engine.pause(machine))
    await add(engine, machine, WEB)
    assert 8080 in world.ports
    world.hang_at = {"agent"}
    stopped = engine.stop(machine, None, force=True)
    with pytest.raises(RefusedError) as caught:
        await add(engine, machine, NAMES)
    assert caught.value.hint == f"banger op wait {stopped.id}"
    await finished(engine, stopped)


async def test_the_next_daemon_opens_them_again_and_sets_nat_as_the_record_has_it(engine, world):
    machine = await make(engine)
    await add(engine, machine, WEB, NAMES, ANY)
    before = machine.record
    ports = set(world.ports)
    await engine.close()
    engine.context.store.close()
    world.ports.clear()
    world.outward[machine.id] = False  # as a daemon that was killed before it had written it down
    again = world.engine()
    await reconcile(again)
    adopted = again.resolve("one")
    assert adopted.record.forwards == before.forwards
    assert world.ports == ports
    assert world.outward == {machine.id: True}
    await take(again, adopted, (UDP, 5353))
    assert "5353/udp" not in world.ports
    await again.close()
    again.context.store.close()


async def test_one_port_that_is_taken_meanwhile_closes_no_other(engine, world):
    machine = await make(engine, WEB, NAMES, ANY)
    before = machine.record.forwards
    await engine.close()
    engine.context.store.close()
    world.ports.clear()
    world.foreign_ports = {8080}
    again = world.engine()
    await reconcile(again)
    adopted = again.resolve("one")
    assert adopted.record.forwards == before, "it is the VM's all the same"
    assert open_ports(adopted) == sorted(["40001", "40002", "5353/udp"])
    await add(again, adopted, Forward(9090, 90))
    assert 9090 in world.ports, "though the other is still taken"
    world.foreign_ports = set()
    await add(again, adopted, Forward(9091, 91))
    assert 8080 in world.ports, "the next change opens it too"
    await again.close()
    again.context.store.close()


def test_a_record_of_an_older_banger_is_of_tcp():
    import msgspec

    old = msgspec.json.decode(b'{"host_port": 8080, "guest_port": 80}', type=Forward)
    assert old == WEB
    assert msgspec.json.decode(msgspec.json.encode(NAMES), type=Forward) == NAMES


def test_ports_that_were_had_are_hoped_for_again_each_by_one():
    record = VmRecord("a", "a", VmState.STOPPED, "", "", VmSpec(forwards=(ANY, WEB, ANY)))
    earlier = (Forward(8080, 9000), Forward(1, 9000), Forward(2, 9000), Forward(3, 22))
    hoped = forwards.hoped(forwards.wanted(record.spec), earlier)
    assert [port for _, port in hoped] == [1, 8080, 2, 3]
