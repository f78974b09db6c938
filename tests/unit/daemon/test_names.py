"""Which VMs have an address under their name, and what becomes of a port that cannot be had."""

import socket
from dataclasses import replace

import pytest

from banger.daemon.names import addresses, serve_names


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
