"""Forwards of a VM that runs: UDP and TCP into a real guest, over a daemon that is killed and over a restart; and NAT changed under it."""

import contextlib
import json
import os
import socket
import subprocess

import pytest

from tests.framework.installation import wait_until
from tests.framework.net_host import BEYOND, ECHO_PORT

pytestmark = pytest.mark.timeout(600)

UDP_ECHO = """
import socket
s = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
s.bind(("", 5353))
while True:
    data, peer = s.recvfrom(65536)
    s.sendto(data[::-1], peer)
"""
STREAM = """
import socket, sys, time
s = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=60)
s.sendall(b"before")
assert s.recv(6) == b"before"
print("before", flush=True)
sys.stdin.readline()
try:
    s.sendall(b"after")
    s.recv(5)
except ConnectionResetError:
    print("reset", flush=True)
else:
    print("alive", flush=True)
"""


def inside(banger, *argv, name="box"):
    return banger.run("vm", "exec", name, "--", *argv)


def forwards(banger, *argv, name="box"):
    return banger.json("vm", "forward", name, *argv)


def host_port(listed, guest_port, protocol):
    (port,) = [
        f["host_port"]
        for f in listed
        if (f["guest_port"], f["protocol"]) == (guest_port, protocol) and f["open"]
    ]
    return port


def udp(port, data, timeout=5, tries=12):
    """The guest's answer; a datagram may be lost, as UDP may, and is sent again."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.settimeout(timeout)
        opened.connect(("127.0.0.1", port))
        for _ in range(tries):
            opened.send(data)
            with contextlib.suppress(TimeoutError):
                return opened.recv(70000)
    raise AssertionError("no answer")


def page(port):
    """What the guest's web server says, once it is there."""
    retry = ["--retry", "20", "--retry-delay", "1", "--retry-all-errors"]
    done = subprocess.run(
        ["curl", "-sS", *retry, f"http://127.0.0.1:{port}/"], capture_output=True, text=True, check=False
    )  # fmt: skip
    return done.stdout


def free(port, kind):
    """That nobody has the port any more."""
    with socket.socket(socket.AF_INET, kind) as opened:
        if kind == socket.SOCK_STREAM:  # connections that have ended may hold it for a minute
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(("127.0.0.1", port))


def serve(banger):
    inside(banger, "systemd-run", "-q", "python3", "-c", UDP_ECHO)
    www = "mkdir -p /srv/www; echo hello > /srv/www/index.html; systemd-run -q python3 -m http.server -d /srv/www 8000"
    inside(banger, "sh", "-c", www)
    inside(banger, "sh", "-c", "until ss -Hlun sport = :5353 | grep -q .; do sleep 0.1; done")


def test_forwards_come_and_go_while_the_vm_runs_and_outlive_daemon_and_run(banger):
    banger.create("box")
    assert banger.vm("box")["status"]["network"] == "user"
    serve(banger)
    listed = forwards(banger, "8000", "5353/udp")
    web, echo = host_port(listed, 8000, "tcp"), host_port(listed, 5353, "udp")
    assert page(web) == "hello\n"
    for data in (b"question", os.urandom(1400), os.urandom(65507)):
        assert udp(echo, data) == data[::-1]
    shown = {(p["protocol"], p["port"]): p["host_port"] for p in banger.json("vm", "ports", "box")}
    assert shown["udp", 5353] == echo
    assert shown["tcp", 8000] == web
    assert echo in [f["host_port"] for f in banger.vm("box")["status"]["forwards"]]

    taken = banger.run("vm", "forward", "box", f"{web}:9", check=False)
    assert taken.returncode == 4
    assert f"--remove {web}" in taken.stderr
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        taken = banger.run("vm", "forward", "box", "9000", f"{port}:9", check=False)
        assert (taken.returncode, str(port) in taken.stderr) == (4, True)
    assert forwards(banger) == listed, "all or nothing"

    banger.kill_daemon()
    assert forwards(banger) == listed
    assert page(web) == "hello\n"
    assert udp(echo, b"after kill -9") == b"9- llik retfa"

    left = forwards(banger, "--remove", f"{web}", "--remove", f"{echo}/udp")
    assert [f["guest_port"] for f in left] == [22]
    free(web, socket.SOCK_STREAM)
    free(echo, socket.SOCK_DGRAM)
    assert forwards(banger, f"{echo}:5353/udp", f"{web}:8000")

    banger.run("vm", "restart", "box")
    again = forwards(banger)
    assert {(f["host_port"], f["protocol"]) for f in again} >= {(web, "tcp"), (echo, "udp")}
    serve(banger)
    assert udp(echo, b"after a restart") == b"tratser a retfa"
    assert page(web) == "hello\n"
    banger.run("vm", "delete", "box")
    free(web, socket.SOCK_STREAM)
    free(echo, socket.SOCK_DGRAM)


def test_nat_changes_under_a_running_guest(banger, own_host):
    """Its connections are cut and new ones refused, at once; the next daemon finds it so; given back, the world is there again."""
    banger.create("box")
    assert banger.connects("box", BEYOND, ECHO_PORT)
    stream = banger.start(
        "vm", "exec", "box", "--", "python3", "-c", STREAM, BEYOND, str(ECHO_PORT),
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert stream.stdout.readline() == "before\n"
    changed = banger.run("vm", "set", "box", "--no-nat", "--format", "json")
    assert json.loads(changed.stdout)["spec"]["nat"] is False
    out, _ = stream.communicate("go on\n", timeout=120)
    assert out == "reset\n"
    assert not banger.connects("box", BEYOND, ECHO_PORT, within_s=4)
    assert banger.run("vm", "ssh", "box", "--", "echo", "inside").stdout == "inside\n"
    banger.kill_daemon()
    wait_until(lambda: banger.vm("box")["ready"], 60)
    assert not banger.connects("box", BEYOND, ECHO_PORT, within_s=4)
    banger.run("vm", "set", "box", "--nat")
    assert banger.connects("box", BEYOND, ECHO_PORT)
    together = banger.run("vm", "set", "box", "--no-nat", "--vcpus", "1", check=False)
    assert together.returncode == 4, "the whole is refused"
    assert banger.connects("box", BEYOND, ECHO_PORT)
