"""What a guest that was paused, or cloned, can be told: the time, and who it is."""

import asyncio
import json
import time

import pytest

from banger.model.machine import VmPaths
from banger.wire.http1 import Exchange
from banger.wire.mux import Mux

pytestmark = pytest.mark.timeout(300)


def guest_time(installation):
    """The guest's clock, and how far it may be off by the time that asking took."""
    began = time.time()
    said = float(installation.run("vm", "exec", "box", "--", "date", "+%s.%N").stdout)
    return said - began, time.time() - began


def test_a_resumed_guest_has_the_right_time(vm):
    vm.run("vm", "pause", "box")
    time.sleep(10)
    vm.run("vm", "resume", "box")
    off, asking = guest_time(vm)
    # As late as the guest was held up while it was told, but not by all the time that it stood still.
    assert -5 < off < asking + 0.5


async def post_identity(paths, body):
    """The status that the agent answers with."""
    token = paths.agent_token.read_text().strip()
    async with asyncio.timeout(30):
        mux = await Mux.connect(paths.agent_socket)
        exchange = Exchange(await mux.open(1024))
        headers = {"Authorization": f"Bearer {token}"}
        await exchange.send("POST", "/identity", headers, json.dumps(body).encode())
        status = await exchange.status()
        await mux.close()
    return status


async def test_a_running_guest_can_be_given_another_identity(vm):
    """As the daemon that has cloned it will: this test is the agent's only client meanwhile."""
    record = vm.vm("box")
    network = vm.run("vm", "exec", "box", "--", "ip", "-o", "-4", "addr", "show", "eth0").stdout
    address = network.split()[3]
    vm.run("daemon", "stop")
    paths = VmPaths(vm.state / "vms" / record["id"], vm.runtime / "vms" / record["id"])
    body = {
        "hostname": "somebody-else",
        "machine_id": "0123456789abcdef" * 2,
        "seed": "5e" * 64,
        "network": {"address": "10.113.77.7/16", "gateway": "10.113.0.1"},
    }
    assert await post_identity(paths, body) == 204
    assert await post_identity(paths, {"hostname": "../x"}) == 400
    script = "hostname; cat /etc/hostname /etc/machine-id; hostname -f; ip -o -4 addr show eth0; ip route"
    said = vm.run("vm", "exec", "box", "--", "sh", "-c", script).stdout.splitlines()
    assert said[:4] == [
        "somebody-else",
        "somebody-else",
        "0123456789abcdef" * 2,
        "somebody-else.banger",
    ]
    assert "10.113.77.7/16" in said[4]
    assert address not in said[4]
    assert any(line.startswith("default via 10.113.0.1 dev eth0") for line in said[5:])
