"""What a real guest can and cannot reach.

As root the module's host is a network namespace of its own (`OwnHost`), with a world beyond it: so that what must not be reached can be
told from what cannot be reached. The daemon, its network and every command live in it.
"""

import os
import re
import signal
import socket
import subprocess
import time

import pytest

from banger.host.probe import root
from banger.network.plan import BRIDGE_MAC, NetworkPlan
from tests.framework.installation import Installation, wait_until
from tests.framework.net_host import (
    BEYOND,
    ECHO_PORT,
    HOST_ADDRESS,
    HOST_WAN,
    OwnHost,
    arp,
    ethernet,
    ipv4,
    name_servers,
    udp,
)

BRIDGE, EVERYONE = BRIDGE_MAC.hex(":"), "ff:ff:ff:ff:ff:ff"
PLAN = NetworkPlan()

pytestmark = pytest.mark.skipif(not root(), reason=f"a host of its own: {root().why}")

SEND = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW)
s.bind(("eth0", 0))
for frame in sys.argv[1:]:
    s.send(bytes.fromhex(frame))
"""
LISTEN = """
import socket, sys
s = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
s.bind(("eth0", 0))
print("listening", flush=True)
while True:
    frame = s.recv(65536)
    print(frame.hex(), flush=True)
    if b"the end" in frame:
        break
"""


@pytest.fixture(scope="module")
def own_host():
    """This thread, and all that it starts, are on a host of their own."""
    host = OwnHost()
    yield host
    host.close()


@pytest.fixture(scope="module")
def shared(own_host, tmp_path_factory, image):
    """The module's installation, on that host."""
    installation = Installation(tmp_path_factory.mktemp("shared"))
    yield installation
    left = installation.close()
    assert not left, f"left behind: {left}"


@pytest.fixture(scope="module")
def box(vm):
    """The module's VM, with banger's own network."""
    network = vm.vm("box")["status"]["network"]
    assert network == "user", f"this host gives {network!r}: see banger daemon status"
    return vm


@pytest.fixture(scope="module")
def other(box):
    """A second VM, one of whose ports is open on the host."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    box.create("other", "--forward", f"{port}:8000")
    return "other"


def inside(banger, name, *argv, **options):
    return banger.run("vm", "exec", name, "--", *argv, check=False, **options)


def tcp(banger, name, address, port, within_s=60):
    """What a connection out of the guest gives: its status, 0 if it answered "hello" with "hello". One that must fail need not try for as
    long as a busy host may take.
    """
    script = f"exec 3<>/dev/tcp/{address}/{port} && echo hello >&3 && read -r line <&3 && test $line = hello"
    return inside(banger, name, "timeout", str(within_s), "bash", "-c", script).returncode


def addresses(banger, name):
    """MAC and IP of a guest, as it has them itself."""
    mac = inside(banger, name, "cat", "/sys/class/net/eth0/address").stdout.strip()
    return mac, banger.vm(name)["status"]["ip"]


def send(banger, name, *frames):
    done = inside(banger, name, "python3", "-c", SEND, *(frame.hex() for frame in frames))
    assert done.returncode == 0, done.stderr


def heard(own_host, text, timeout_s=60):
    """Wait until the world has heard it: what was sent before has been judged by then."""
    wait_until(lambda: text in own_host.world.heard, timeout_s, f"{text} did not arrive")


def resolve(banger, name):
    """A guest that has spoken to its gateway is known to the bridge."""
    assert tcp(banger, name, BEYOND, ECHO_PORT) == 0


def test_the_world_beyond_the_host_is_reached(box, own_host):
    """The control of every test below: the same guest, the same commands, an address that is allowed."""
    assert tcp(box, "box", BEYOND, ECHO_PORT) == 0
    assert own_host.world.connected
    mac, ip = addresses(box, "box")
    send(box, "box", ethernet(BRIDGE, mac, 0x0800, ipv4(ip, BEYOND, 17, udp(ECHO_PORT, b"mine"))))
    heard(own_host, b"mine")


@pytest.mark.parametrize(
    "address",
    [HOST_ADDRESS, HOST_WAN, PLAN.gateway, PLAN.dns, PLAN.uplink_gateway, PLAN.uplink_dns],
)
def test_no_address_of_the_host_is_in_reach(box, own_host, address):
    if address in {HOST_ADDRESS, HOST_WAN}:  # the server is there: only the filter is in between
        with socket.create_connection((address, ECHO_PORT), timeout=60) as opened:
            opened.sendall(b"host")
            assert opened.recv(4) == b"host"
    own_host.services.connected.clear()
    assert tcp(box, "box", address, ECHO_PORT, within_s=4) != 0
    assert own_host.services.connected == []


def test_the_hosts_loopback_is_not_reached_even_by_frames_that_name_it(box, own_host):
    resolve(box, "box")
    own_host.services.heard.clear()
    mac, ip = addresses(box, "box")
    frames = [
        ethernet(BRIDGE, mac, 0x0800, ipv4(ip, address, 17, udp(ECHO_PORT, b"secret")))
        for address in ("127.0.0.1", "127.1.2.3", "0.0.0.0")
    ]
    last = ethernet(BRIDGE, mac, 0x0800, ipv4(ip, BEYOND, 17, udp(ECHO_PORT, b"after loopback")))
    send(box, "box", *frames, last)
    heard(own_host, b"after loopback")
    assert own_host.services.heard == []


def test_ipv6_is_clearly_off(box):
    out = inside(box, "box", "ip", "-6", "addr", "show", "dev", "eth0").stdout
    assert out.strip() == ""


def test_a_spoofed_source_goes_nowhere(box, other, own_host):
    """Frames with another VM's MAC, its IP or both, sent out and to that VM itself; and ARP that claims its address."""
    for name in ("box", other):
        resolve(box, name)
    (mac, ip), (its_mac, its_ip) = addresses(box, "box"), addresses(box, other)
    assert (mac, ip) != (its_mac, its_ip)
    with listening(box, other) as frames:
        claims = [
            ethernet(EVERYONE, source, 0x0806, arp(sender, claimed, target, operation))
            for source in (mac, its_mac)
            for sender in (mac, its_mac)
            for claimed, target in (
                (its_ip, its_ip),
                (its_ip, PLAN.gateway),
                (PLAN.gateway, its_ip),
            )
            for operation in (1, 2)
        ]
        packets = [
            ethernet(towards, source, 0x0800, ipv4(sender, target, 17, udp(ECHO_PORT, b"spoofed")))
            for towards in (BRIDGE, its_mac, EVERYONE)
            for source, sender in (
                (mac, its_ip),
                (its_mac, ip),
                (its_mac, its_ip),
                (mac, "8.8.8.8"),
            )
            for target in (BEYOND, its_ip, HOST_ADDRESS)
        ]
        honest = ipv4(ip, BEYOND, 17, udp(ECHO_PORT, b"honest"))
        send(box, "box", *claims, *packets, ethernet(BRIDGE, mac, 0x0800, honest))
        heard(own_host, b"honest")
        own = ipv4(its_ip, BEYOND, 17, udp(ECHO_PORT, b"the end"))
        send(box, other, ethernet(BRIDGE, its_mac, 0x0800, own))
    assert any(b"the end" in frame for frame in frames)
    assert not [frame for frame in frames if b"spoofed" in frame]
    assert not [
        frame for frame in frames if frame[12:14] == b"\x08\x06" and frame[6:12].hex(":") == mac
    ]
    assert b"spoofed" not in own_host.world.heard
    assert b"spoofed" not in own_host.services.heard
    resolve(box, other)  # nobody has taken its address


class listening:  # noqa: N801  used as a function
    """What a guest's NIC receives and sends, up to a frame with "the end"."""

    def __init__(self, banger, name):
        self._process = banger.start(
            "vm", "exec", name, "--", "timeout", "180", "python3", "-c", LISTEN,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.frames = []

    def __enter__(self):
        assert self._process.stdout.readline() == "listening\n"
        return self.frames

    def __exit__(self, *error):
        if error[0] is not None:
            self._process.terminate()
        out, _ = self._process.communicate(timeout=180)
        self.frames += [bytes.fromhex(line) for line in out.split()]


def test_one_vm_cannot_reach_another(box, other):
    """Its SSH port answers itself and the host's forward, and nobody else."""
    _, address = addresses(box, other)
    probe = ["bash", "-c", f"read -r line < /dev/tcp/{address}/22; echo $line"]
    assert inside(box, other, "timeout", "60", *probe).stdout.startswith("SSH-2.0-")
    assert box.run("vm", "ssh", other, "--", "echo", "hi").stdout == "hi\n"
    assert inside(box, "box", "timeout", "3", *probe).stdout.strip() == ""


def answers(banger, name):
    """What the resolver of the guest says to a question with the id 1234: the id, and the flags."""
    script = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(60); "
    script += (
        "server=[l.split()[1] for l in open('/etc/resolv.conf') if l.startswith('nameserver')][0]; "
    )
    script += r"s.sendto(b'\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01', (server, 53)); "
    script += "print(s.recv(512)[:4].hex())"
    return inside(banger, name, "python3", "-c", script).stdout.strip()


def test_a_vm_without_nat_reaches_nothing_outside_and_is_reached_itself(box, own_host):
    box.create("closed", "--no-nat")
    try:
        assert tcp(box, "box", BEYOND, ECHO_PORT) == 0
        assert tcp(box, "closed", BEYOND, ECHO_PORT, within_s=4) != 0
        mac, ip = addresses(box, "closed")
        packet = ipv4(ip, BEYOND, 17, udp(ECHO_PORT, b"leaked"))
        send(box, "closed", ethernet(BRIDGE, mac, 0x0800, packet))
        mac, ip = addresses(box, "box")
        packet = ipv4(ip, BEYOND, 17, udp(ECHO_PORT, b"after the leak"))
        send(box, "box", ethernet(BRIDGE, mac, 0x0800, packet))
        heard(own_host, b"after the leak")
        assert b"leaked" not in own_host.world.heard
        assert box.run("vm", "ssh", "closed", "--", "hostname").stdout == "closed\n"
    finally:
        box.run("vm", "delete", "closed")


def test_names_are_resolved_by_the_hosts_resolver(box, own_host):
    """It lies beyond the host, as this host's resolv.conf has it, and hears the question."""
    if name_servers()[0].startswith("127."):
        pytest.skip("this host's resolver is on its own loopback: none is beyond it")
    assert answers(box, "box") == "12348180"
    assert any(b"example" in text for text in own_host.world.heard)


def test_a_forward_leads_from_a_loopback_port_to_the_guest(box, other):
    forwards = box.vm(other)["status"]["forwards"]
    (port,) = [each["host_port"] for each in forwards if each["guest_port"] == 8000]
    serve = "mkdir /srv/www; echo hello > /srv/www/index.html; systemd-run -q python3 -m http.server -d /srv/www 8000"
    assert inside(box, other, "sh", "-c", serve).returncode == 0
    retry = ["--retry", "20", "--retry-delay", "1", "--retry-all-errors"]
    done = subprocess.run(
        ["curl", "-sS", *retry, f"http://127.0.0.1:{port}/"],
        check=False, capture_output=True, text=True,
    )  # fmt: skip
    assert done.stdout == "hello\n", done.stderr
    refused = box.create("web2", "--forward", f"{port}:80", check=False)
    assert refused.returncode == 4
    assert str(port) in refused.stderr


def test_a_dead_uplink_is_repaired_in_place(box):
    def uplink():
        return [pid for pid, text in box.processes().items() if re.match(r"\S*slirp4netns ", text)]

    (pid,) = uplink()
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 60
    while not [p for p in uplink() if p != pid]:
        assert time.monotonic() < end, "no new uplink"
        time.sleep(0.05)
    assert tcp(box, "box", BEYOND, ECHO_PORT) == 0
