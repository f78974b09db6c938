"""A real guest in bridge mode: reached by its address, out by NAT, and neither host nor neighbour in its reach."""

import pytest

from banger.host.probe import root
from tests.framework.helper_host import host_state, tables
from tests.framework.installation import Installation, wait_until
from tests.framework.net_host import BEYOND, ECHO_PORT, HOST_ADDRESS, HOST_WAN, METADATA, OwnHost
from tests.framework.ssh_banner import banner

pytestmark = [
    pytest.mark.timeout(900),
    pytest.mark.skipif(not root(), reason=f"a host of its own: {root().why}"),
]


@pytest.fixture(scope="module")
def own_host():
    """This thread, the daemon and every command are on a host of their own."""
    host = OwnHost()
    yield host
    host.close()


@pytest.fixture(scope="module")
def shared(own_host, tmp_path_factory, image):
    """The module's installation, whose root daemon makes uplinks itself: there is no helper."""
    directory = tmp_path_factory.mktemp("shared")
    before = host_state()
    installation = Installation(
        directory,
        helper_socket=directory / "none.sock",
        helper_state_dir=directory / "helper",
        network="bridge",
    )
    yield installation
    left = installation.close()
    assert not left, f"left behind: {left}"
    wait_until(lambda: host_state() == before, 60, "the host is not as it was")


def test_it_has_an_address_that_the_host_reaches(vm):
    status = vm.vm("box")["status"]
    assert status["network"] == "bridge"
    assert banner(status["ip"]).startswith(b"SSH-2.0-")
    shown = vm.run("vm", "exec", "box", "--", "ip", "-o", "-4", "addr", "show", "eth0").stdout
    assert f" {status['ip']}/22 " in shown
    assert vm.run("vm", "ssh", "box", "--", "echo", "inside").stdout == "inside\n"


def test_it_reaches_the_world_by_the_hosts_address(vm, own_host):
    assert vm.connects("box", BEYOND, ECHO_PORT)
    wait_until(lambda: own_host.world.connected, 30)  # its thread may take it up later
    assert own_host.world.connected[-1][0] == HOST_WAN


def test_names_are_resolved_by_the_hosts_resolver(vm, own_host):
    script = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(60); "
    script += (
        "server=[l.split()[1] for l in open('/etc/resolv.conf') if l.startswith('nameserver')][0]; "
    )
    script += "s.sendto(b'\\x12\\x34\\x01\\x00\\x00\\x01' + bytes(6) + b'\\x07example\\x03com\\x00\\x00\\x01\\x00\\x01', (server, 53)); "
    script += "print(s.recv(512)[:4].hex())"
    done = vm.run("vm", "exec", "box", "--", "python3", "-c", script)
    assert done.stdout.strip() == "12348180"
    assert any(b"example" in text for text in own_host.world.heard)


@pytest.mark.parametrize("address", [HOST_ADDRESS, HOST_WAN, "10.115.0.2", METADATA])
def test_no_service_of_the_host_is_in_reach(vm, own_host, address):
    own_host.services.connected.clear()
    before = len(own_host.world.connected)
    assert not vm.connects("box", address, ECHO_PORT, within_s=4)
    assert own_host.services.connected == []
    assert len(own_host.world.connected) == before


def test_a_second_vm_is_not_in_reach_and_one_without_nat_goes_nowhere(vm, own_host):
    vm.create("closed", "--no-nat")
    try:
        ip = vm.vm("closed")["status"]["ip"]
        assert banner(ip).startswith(b"SSH-2.0-")
        assert not vm.connects("box", ip, 22, within_s=4)
        assert not vm.connects("closed", BEYOND, ECHO_PORT, within_s=4)
        assert vm.connects("box", BEYOND, ECHO_PORT)
    finally:
        vm.run("vm", "delete", "closed")


def test_guests_of_a_group_reach_each_other_by_address_and_name_until_one_leaves(vm):
    """``box`` joins while it runs, so it knows its peer by address; ``peer`` was born in the group and asks for names."""
    vm.create("peer", "--no-nat", "--group", "web")
    try:
        box, peer = (vm.vm(name)["status"]["ip"] for name in ("box", "peer"))
        assert not vm.connects("peer", box, 22, within_s=4)
        vm.run("vm", "set", "box", "--group", "web")
        assert vm.connects("box", peer, 22)
        assert vm.connects("peer", "box.banger", 22)
        found = vm.run("vm", "exec", "peer", "--", "getent", "ahostsv4", "box.banger").stdout
        assert found.split()[0] == box
        assert not vm.connects("peer", BEYOND, ECHO_PORT, within_s=4)
        vm.run("vm", "set", "box", "--no-groups")
        assert not vm.connects("box", peer, 22, within_s=4)
        assert not vm.connects("peer", box, 22, within_s=4)
    finally:
        vm.run("vm", "delete", "peer")


def test_the_next_daemon_adopts_guest_and_uplink(vm):
    ip = vm.vm("box")["status"]["ip"]
    vm.run("daemon", "stop")
    assert "table inet banger_host" in tables()
    assert banner(ip).startswith(b"SSH-2.0-")
    assert vm.vm("box")["status"]["ip"] == ip
    assert vm.connects("box", BEYOND, ECHO_PORT)


def test_the_same_vm_runs_in_user_mode_and_back(vm):
    first = vm.vm("box")["status"]["ip"]
    seen = []
    for mode in ("user", "bridge"):
        vm.run("vm", "stop", "box")
        vm.run("vm", "set", "box", "--network", mode)
        vm.run("vm", "start", "box")
        status = vm.vm("box")["status"]
        assert status["network"] == mode
        assert vm.connects("box", BEYOND, ECHO_PORT)
        assert vm.run("vm", "ssh", "box", "--", "echo", "inside").stdout == "inside\n"
        seen.append(status["ip"])
    assert seen[0] != first
    assert seen[1] == first
