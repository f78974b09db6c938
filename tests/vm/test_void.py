"""A guest of the void image is one of banger's: runit as PID 1, SSH, the agent, the work disk, restarts, and a quick boot.

Its packages are a real XBPS repository out of Debian's programs (`tests.framework.void_guest`): what Void itself would install is not
reachable from tests. xbps is that of PATH, else a stand-in.
"""

import os
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import pytest

from tests.framework import void_guest
from tests.framework.installation import ROOT, Installation, wait_until
from tests.framework.mirror import Mirror
from tests.framework.xbps_repository import TOOLS

pytestmark = pytest.mark.timeout(1200)
SMALL = ("--memory", "512M", "--vcpus", "1", "--work-size", "1G")
SSH_S = 4.0
"""The promise: sshd listens so long after the kernel began, as `systemd-analyze` has it of Debian; under TCG, on a machine that does nothing else."""
LISTENS = "stat -c %.Y /run/sshd.pid; date +%s.%N; cut -d ' ' -f 1 /proc/uptime"


@pytest.fixture(scope="module")
def void(tmp_path_factory):
    """An installation with a void image that was built here."""
    if shutil.which("apt-get") is None or shutil.which("dpkg-deb") is None:
        pytest.skip("the packages of the guest are made out of Debian's, by apt-get and dpkg-deb")
    place = Path(tempfile.mkdtemp(prefix="bgr-void-", dir="/tmp"))
    mirror = Mirror(place / "mirror")
    installation = Installation(place / "banger", void_mirror=mirror.url)
    (installation.state / "images").unlink()
    try:
        repository = void_guest.make(place / "mirror")
        for name, tools in (("void-exp", ""), ("void-dev", void_guest.shipped_tools())):
            recipe = str(void_guest.recipe(place, repository, name, tools))
            installation.run("image", "lock", recipe)
            done = installation.run("image", "build", recipe, timeout=600)
            print(f"built with {TOOLS}:\n{done.stderr}")
        installation.run("vm", "create", "--image", "void-exp", "--name", "box", *SMALL)
        yield installation
    finally:
        mirror.close()
        left = installation.close()
        subprocess.run(["rm", "-rf", place], check=True)
        assert not left, f"left behind: {left}"


def inside(void, text, **more):
    return void.run("vm", "exec", "box", "--", "sh", "-c", text, **more).stdout.strip()


def test_it_is_void_with_runit_as_pid_1_and_its_own_kernel_and_modules(void):
    image = void.json("image", "show", "void-exp")
    assert (image["distribution"], image["kernel_release"]) == ("void", inside(void, "uname -r"))
    assert inside(void, "cat /proc/1/comm") == "runit"
    assert 'ID="void"' in inside(void, "cat /usr/lib/os-release")
    assert "virtio_net" in inside(void, "cut -d' ' -f1 /proc/modules")


def test_ssh_the_hostname_the_network_and_the_work_disk_are_this_vms(void):
    assert (
        void.run(
            "vm", "ssh", "box", "--", "hostname || cat /proc/sys/kernel/hostname"
        ).stdout.strip()
        == "box"
    )
    address = void.json("vm", "show", "box")["status"]["ip"]
    assert address in inside(void, "ip -4 -o address show eth0")
    assert "/dev/vdb /root ext4" in inside(void, "grep ' /root ' /proc/mounts")
    assert inside(void, "cat /proc/sys/net/ipv4/ping_group_range").split() == ["0", "2147483647"]
    assert inside(void, "stat -c %a /root/.ssh") == "700"


def test_nobody_comes_in_by_password_and_the_host_key_is_the_pinned_one(void):
    said = inside(
        void, "sshd -T 2> /dev/null | grep -E '^(passwordauthentication|permitrootlogin|hostkey) '"
    )
    assert "passwordauthentication no" in said
    assert "hostkey /etc/ssh/ssh_host_ed25519_key" in said
    assert inside(void, "ls /etc/ssh/ssh_host_*").split() == [
        "/etc/ssh/ssh_host_ed25519_key",
        "/etc/ssh/ssh_host_ed25519_key.pub",
    ]


def test_a_service_that_dies_is_back_and_only_the_few_services_run(void):
    services = inside(void, "ls /var/service/")
    assert {"sshd", "banger-agent", "getty-ttyS0"} <= set(services.split())
    before = inside(void, "sv status /var/service/sshd")
    inside(void, "sv -w 60 restart /var/service/sshd")
    assert inside(void, "sv status /var/service/sshd") != before
    back = ("vm", "ssh", "box", "--", "echo", "back")  # it is up some time before it listens
    wait_until(lambda: void.run(*back, check=False).stdout.strip() == "back", 60)


def test_a_reboot_from_inside_and_a_restart_keep_what_was_written(void):
    inside(void, "echo mine > /root/file; echo system > /etc/file; sync")
    void.run("vm", "restart", "box")
    assert inside(void, "cat /root/file /etc/file").split() == ["mine", "system"]
    assert (
        "stopped" in void.run("vm", "stop", "box").stderr + void.json("vm", "show", "box")["state"]
    )
    console = void.run("vm", "logs", "box").stdout
    assert "Kernel panic" not in console
    void.run("vm", "start", "box")
    assert inside(void, "dmesg | grep -c 'recovery complete'", check=False) in {"0", ""}, (
        "it was unmounted before it ended"
    )


def test_powered_off_from_inside_it_is_stopped(void):
    void.run("vm", "exec", "box", "--", "runit-init", "0", check=False)
    end = time.monotonic() + 60
    while (shown := void.json("vm", "show", "box"))["state"] != "stopped":
        assert time.monotonic() < end, (shown["state"], shown["status"]["last_error"])
        time.sleep(0.2)
    void.run("vm", "start", "box")


def ssh_s(void):
    """Seconds until sshd listens, by the guest's clock since its kernel began; and to its banner through the forward, since the VMM's start."""
    void.run("vm", "stop", "box")
    void.run("vm", "start", "box", "--no-wait")
    deadline = time.monotonic() + 120
    while True:
        assert time.monotonic() < deadline
        try:
            port = void.vm("box")["status"]["forwards"][0]["host_port"]
            with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
                # A connection costs sshd a process: who gives up early and comes again keeps an emulated one from answering anybody.
                connection.settimeout(30)
                if connection.recv(4) == b"SSH-":
                    break
        except (OSError, IndexError, KeyError):
            time.sleep(0.02)
    answered = time.time()
    operation = void.json("op", "list")[0]
    void.run("op", "wait", operation["id"])
    stages = {stage["name"]: stage for stage in void.json("op", "show", operation["id"])["stages"]}
    print({name: stage["duration_ms"] for name, stage in stages.items()})
    listened, now, uptime = map(float, inside(void, LISTENS).split())
    began = datetime.fromisoformat(stages["vmm"]["started_at"]).timestamp()
    return round(listened - (now - uptime), 2), round(answered - began, 2)


def test_it_boots_to_ssh_as_quickly_as_promised(void):
    """The least of four, as others share this machine."""
    times = [ssh_s(void) for _ in range(4)]
    print(f"sshd listens, its banner is read: {times}")
    # Beside other tests; what was measured without them is in SPECIFICATION.md.
    assert min(times)[0] < 4 * SSH_S, times


@pytest.mark.long
def test_the_smoke_run_of_void_passes_with_mise_and_with_opencode_as_a_service(void, tmp_path):
    """On an image with the tools of banger's own recipe: what is pinned there runs here."""
    program = tmp_path / "banger"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m banger.cli.main "$@"\n')
    program.chmod(0o755)
    void.run("vm", "stop", "box")
    argv = [ROOT / "scripts" / "verify-void.sh", "--image", "void-dev", "--with-tools", "--timeout", "500"]  # fmt: skip
    env = {**void.env, "BANGER": str(program), "PATH": os.environ["PATH"]}
    done = subprocess.run(argv, env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False, timeout=1100)  # fmt: skip
    print(done.stdout, done.stderr)
    said = done.stdout
    assert said.splitlines()[-1] == "[verify-void] ok"
    assert re.search(r"\[verify-void\] ssh, agent: .*runit", said)
    for tool in void_guest.tools():
        assert f"[verify-void] {tool['name']}: {tool['version']}" in said
    assert re.search(r"opencode: run: .*opencode", said)
    assert re.search(r"opencode, killed: started again by runit, pid \d+, then \d+", said)
    assert void.run("vm", "list", "--format", "name").stdout.split() == ["box"]
