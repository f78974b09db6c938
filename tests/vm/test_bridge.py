"""A real guest in bridge mode: reached by its address, out by NAT, and neither host nor neighbour in its reach."""

import socket

import pytest

from banger.host.probe import root
from tests.framework.helper_host import host_state, tables
from tests.framework.installation import Installation, wait_until
from tests.framework.net_host import BEYOND, ECHO_PORT, HOST_ADDRESS, HOST_WAN, METADATA, OwnHost

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
    wait_until(lambda: host_state() == before, 5, "the host is not as it was")


def connects(installation, name, address, port=ECHO_PORT):
    """Whether TCP from inside the guest reaches ``address``."""
    script = f"timeout 4 bash -c '</dev/tcp/{address}/{port}'"
    done = installation.run("vm", "exec", name, "--", "bash", "-c", script, check=False)
    return done.returncode == 0


def banner(address):
    """What SSH says to the host that connects by the guest's own address."""
    with socket.create_connection((address, 22), timeout=5) as opened:
        opened.settimeout(5)
        return opened.recv(64)


def test_it_has_an_address_that_the_host_reaches(vm):
    status = vm.vm("box")["status"]
    assert status["network"] == "bridge"
    assert banner(status["ip"]).startswith(b"SSH-2.0-")
    shown = vm.run("vm", "exec", "box", "--", "ip", "-o", "-4", "addr", "show", "eth0").stdout
    assert f" {status['ip']}/22 " in shown
    assert vm.run("vm", "ssh", "box", "--", "echo", "inside").stdout == "inside\n"


def test_it_reaches_the_world_by_the_hosts_address(vm, own_host):
    assert connects(vm, "box", BEYOND)
    assert own_host.world.connected[-1][0] == HOST_WAN


def test_names_are_resolved_by_the_hosts_resolver(vm, own_host):
    script = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); "
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
    assert not connects(vm, "box", address)
    assert own_host.services.connected == []
    assert len(own_host.world.connected) == before


def test_a_second_vm_is_not_in_reach_and_one_without_nat_goes_nowhere(vm, own_host):
    vm.create("closed", "--no-nat")
    try:
        ip = vm.vm("closed")["status"]["ip"]
        assert banner(ip).startswith(b"SSH-2.0-")
        assert not connects(vm, "box", ip, 22)
        assert not connects(vm, "closed", BEYOND)
        assert connects(vm, "box", BEYOND)
    finally:
        vm.run("vm", "delete", "closed")


def test_the_next_daemon_adopts_guest_and_uplink(vm):
    ip = vm.vm("box")["status"]["ip"]
    vm.run("daemon", "stop")
    assert "table inet banger_host" in tables()
    assert banner(ip).startswith(b"SSH-2.0-")
    assert vm.vm("box")["status"]["ip"] == ip
    assert connects(vm, "box", BEYOND)


def test_the_same_vm_runs_in_user_mode_and_back(vm):
    first = vm.vm("box")["status"]["ip"]
    seen = []
    for mode in ("user", "bridge"):
        vm.run("vm", "stop", "box")
        vm.run("vm", "set", "box", "--network", mode)
        vm.run("vm", "start", "box")
        status = vm.vm("box")["status"]
        assert status["network"] == mode
        assert connects(vm, "box", BEYOND)
        assert vm.run("vm", "ssh", "box", "--", "echo", "inside").stdout == "inside\n"
        seen.append(status["ip"])
    assert seen[0] != first
    assert seen[1] == first
