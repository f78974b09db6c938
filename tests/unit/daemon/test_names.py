"""Which VMs have an address under their name, and what becomes of a port that cannot be had."""

import functools
import socket
from dataclasses import replace

import pytest

from banger.daemon.names import addresses, peers, serve_names


@pytest.fixture
async def engine(api):
    for name in ("routed", "forwarded", "stopped"):
        body = {"name": name, "disk_bytes": 1 << 30, "work_bytes": 1 << 30}
        await api.wait((await api("POST", "/v1/vms", {**body, "start": name != "stopped"}))[1])
    engine = api.service.engine
    machine = engine.resolve("routed")
    machine.save(run=replace(machine.record.run, network="bridge", ip="10.113.0.16"))
    return engine


async def test_only_a_vm_that_the_host_reaches_by_address_has_one(engine):
    """127.0.0.1 for the others would lead to the host's own services under a VM's name."""
    assert addresses(engine, "routed") == ["10.113.0.16"]
    assert addresses(engine, engine.resolve("routed").id) == ["10.113.0.16"]
    assert addresses(engine, "forwarded") == []
    assert addresses(engine, "stopped") == []
    assert addresses(engine, "nobody") is None
    assert addresses(engine, engine.resolve("routed").id[:6]) is None


async def test_a_guest_is_told_of_itself_and_of_those_in_a_group_of_its_own_network(engine):
    def place(name, groups, mode="user", ip=None):
        machine = engine.resolve(name)
        spec = replace(machine.record.spec, groups=groups)
        run = machine.record.run and replace(machine.record.run, network=mode, ip=ip)
        machine.save(spec=spec, run=run)
        return machine

    web = place("routed", ("web",), ip="10.113.0.16")
    place("forwarded", ("db", "web"), ip="10.113.0.17")
    place("stopped", ("web",))
    asked = functools.partial(peers, engine, "user")
    assert asked("10.113.0.16", "routed") == asked("10.113.0.16", web.id) == ["10.113.0.16"]
    assert asked("10.113.0.16", "forwarded") == ["10.113.0.17"]
    assert asked("10.113.0.17", "routed") == ["10.113.0.16"]
    for asker, name in (("10.113.0.16", "stopped"), ("10.113.0.16", "nobody"), ("10.113.0.99", "routed")):  # fmt: skip
        assert asked(asker, name) is None
    assert peers(engine, "bridge", "10.113.0.16", "forwarded") is None
    place("forwarded", ("db",), ip="10.113.0.17")
    assert asked("10.113.0.16", "forwarded") is None
    place("forwarded", ("web",), mode="bridge", ip="10.113.0.17")
    assert asked("10.113.0.16", "forwarded") is None


async def test_a_taken_port_is_a_warning_and_no_more(api, warnings):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert await serve_names(api.service, port) is None
    (warning,) = warnings
    assert f"port {port} of 127.0.0.1" in warning
    assert "dns_port" in warning


async def test_without_a_port_nothing_is_served(api, warnings):
    assert await serve_names(api.service, 0) is None
    assert warnings == []
