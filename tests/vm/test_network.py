"""What a real guest can and cannot reach. Every server here listens on this host's own addresses, in this test."""

import contextlib
import http.server
import socket
import subprocess
import threading

import pytest


@contextlib.contextmanager
def server(address, family=socket.AF_INET):
    """An HTTP server on this host; yields its port and the list of paths that were asked."""
    asked = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"reached the host")

        def log_message(self, *args):
            pass

    class Server(http.server.ThreadingHTTPServer):
        address_family = family

    with Server((address, 0), Handler) as listening:
        thread = threading.Thread(target=listening.serve_forever, daemon=True)
        thread.start()
        try:
            yield listening.server_address[1], asked
        finally:
            listening.shutdown()
            thread.join()


def host_addresses():
    out = subprocess.run(
        ["ip", "-o", "-4", "addr", "show", "scope", "global"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return [line.split()[3].split("/")[0] for line in out.splitlines()]


def fetch(vm, name, url, seconds=4):
    """curl inside the guest: its exit status and output."""
    done = vm.run("vm", "exec", name, "--", "curl", "-sS", "-m", str(seconds), url, check=False)
    return done.returncode, done.stdout


@pytest.fixture(scope="module")
def user_network(vm):
    network = vm.vm("box")["status"]["network"]
    assert network == "user", f"this host gives {network!r}: see banger daemon status"
    return vm


def test_the_hosts_loopback_is_out_of_reach(user_network):
    gateway = user_network.run(
        "vm", "exec", "box", "--", "sh", "-c", "ip route show default | cut -d' ' -f3"
    ).stdout.strip()
    with server("127.0.0.1") as (port, asked):
        for target in (gateway, "127.0.0.1", "10.0.2.2"):
            assert fetch(user_network, "box", f"http://{target}:{port}/")[0] != 0
        assert asked == []


def test_no_address_of_the_host_is_in_reach(user_network):
    with server("0.0.0.0") as (port, asked):
        addresses = host_addresses()
        for address in addresses:
            assert fetch(user_network, "box", f"http://{address}:{port}/")[0] != 0
        assert asked == []
    assert addresses, "this host has no address but loopback: nothing was tested"


def test_ipv6_is_clearly_off(user_network):
    out = user_network.run(
        "vm", "exec", "box", "--", "ip", "-6", "addr", "show", "dev", "eth0"
    ).stdout
    assert out.strip() == ""


def test_a_spoofed_source_goes_nowhere(user_network):
    """Packets with a source address that is not the guest's lease never reach the namespace's bridge port's other side."""
    script = (
        "ip addr add 10.0.2.250/32 dev eth0 2>/dev/null; "
        "ping -I 10.0.2.250 -c 2 -W 1 $(ip route show default | cut -d' ' -f3); status=$?; "
        "ip addr del 10.0.2.250/32 dev eth0; exit $status"
    )
    done = user_network.run("vm", "exec", "box", "--", "sh", "-c", script, check=False)
    assert done.returncode != 0, done.stdout


def test_one_vm_cannot_reach_another(shared, vm):
    shared.create("other")
    try:
        address = shared.vm("other")["status"]["ip"]
        assert address
        assert address != shared.vm("box")["status"]["ip"]
        done = shared.run(
            "vm",
            "exec",
            "box",
            "--",
            "bash",
            "-c",
            f"timeout 3 bash -c '</dev/tcp/{address}/22'",
            check=False,
        )
        assert done.returncode != 0
    finally:
        shared.run("vm", "delete", "other")


def test_names_are_resolved(user_network):
    """The uplink's resolver answers; which name is known here depends on the host, so the answer may be that there is none."""
    script = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); "
    script += (
        "server=[l.split()[1] for l in open('/etc/resolv.conf') if l.startswith('nameserver')][0]; "
    )
    script += r"s.sendto(b'\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01', (server, 53)); "
    script += "print(s.recv(512)[:2].hex())"
    assert user_network.run("vm", "exec", "box", "--", "python3", "-c", script).stdout == "1234\n"


def test_a_forward_leads_from_a_loopback_port_to_the_guest(banger):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    banger.create("web", "--forward", f"{port}:8000")
    banger.run(
        "vm", "exec", "web", "--", "sh", "-c", "mkdir /srv/www; echo hello > /srv/www/index.html"
    )
    banger.run(
        "vm",
        "exec",
        "web",
        "--",
        "systemd-run",
        "-q",
        "python3",
        "-m",
        "http.server",
        "-d",
        "/srv/www",
        "8000",
    )
    done = subprocess.run(
        [
            "curl",
            "-sS",
            "--retry",
            "20",
            "--retry-delay",
            "1",
            "--retry-all-errors",
            f"http://127.0.0.1:{port}/",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.stdout == "hello\n", done.stderr
    refused = banger.create("web2", "--forward", f"{port}:80", check=False)
    assert refused.returncode == 4
    assert str(port) in refused.stderr


def test_a_dead_uplink_is_repaired_in_place(banger):
    import os
    import signal
    import time

    banger.create("one")

    def uplink():
        return [
            pid for pid, text in banger.processes().items() if "slirp4netns" in text.split(" ")[0]
        ]

    (pid,) = uplink()
    os.kill(pid, signal.SIGKILL)
    end = time.monotonic() + 5
    while not (new := [p for p in uplink() if p != pid]):
        assert time.monotonic() < end, "no new uplink"
        time.sleep(0.05)
    script = "import socket; s=socket.socket(socket.AF_INET, socket.SOCK_DGRAM); s.settimeout(5); "
    script += (
        "server=[l.split()[1] for l in open('/etc/resolv.conf') if l.startswith('nameserver')][0]; "
    )
    script += r"s.sendto(b'\x12\x34\x01\x00\x00\x01\x00\x00\x00\x00\x00\x00\x07example\x03com\x00\x00\x01\x00\x01', (server, 53)); "
    script += "print(s.recv(512)[:2].hex())"
    assert banger.run("vm", "exec", "one", "--", "python3", "-c", script).stdout == "1234\n"
    assert new
