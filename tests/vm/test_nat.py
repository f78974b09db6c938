"""A guest without NAT reaches nothing outside, on banger's own network and on QEMU's; one with NAT is the proof that there was a way."""

import shutil
from pathlib import Path

import pytest

from tests.framework.net_host import BEYOND, ECHO_PORT

pytestmark = pytest.mark.timeout(600)


def connects(installation, name, address, port):
    """Whether TCP from inside the guest reaches ``address``."""
    script = f"timeout 4 bash -c '</dev/tcp/{address}/{port}'"
    done = installation.run("vm", "exec", name, "--", "bash", "-c", script, check=False)
    return done.returncode == 0


def ssh_answers(installation, name):
    done = installation.run("vm", "ssh", name, "--", "echo", "inside", check=False)
    return done.stdout == "inside\n"


def test_without_nat_only_the_way_in_is_open(banger, own_host):
    banger.create("open")
    banger.create("closed", "--no-nat")
    assert banger.vm("closed")["status"]["network"] == "user"
    assert connects(banger, "open", BEYOND, ECHO_PORT)
    assert not connects(banger, "closed", BEYOND, ECHO_PORT)
    assert not connects(banger, "closed", "10.113.0.2", 53)
    assert len(own_host.world.connected) == 1
    assert ssh_answers(banger, "closed")
    banger.run("daemon", "stop")  # the next one adopts the network and its filter
    assert not connects(banger, "closed", BEYOND, ECHO_PORT)
    assert connects(banger, "open", BEYOND, ECHO_PORT)


def test_without_nat_qemus_own_network_leads_nowhere(banger, own_host, tmp_path):
    """There is no uplink program on this PATH, so VMs get QEMU's own network, whose gateway is the host's loopback."""
    programs = tmp_path / "bin"
    programs.mkdir()
    for directory in ("/usr/sbin", "/usr/bin", "/sbin", "/bin"):
        for program in Path(directory).iterdir():
            if (
                program.name not in {"slirp4netns", "pasta"}
                and not (programs / program.name).exists()
            ):
                (programs / program.name).symlink_to(program)
    banger.env["PATH"] = str(programs)
    banger.env["BANGER_QEMU_PATH"] = shutil.which("qemu-system-x86_64")
    banger.create("open")
    banger.create("closed", "--no-nat")
    assert banger.vm("closed")["status"]["network"] == "qemu-user"
    assert "127.0.0.1" in banger.vm("open")["status"]["warning"]
    assert banger.vm("closed")["status"]["warning"] == ""
    gateway = "10.113.0.1"
    assert connects(banger, "open", gateway, ECHO_PORT)
    assert len(own_host.services.connected) == 1
    assert not connects(banger, "closed", gateway, ECHO_PORT)
    assert not connects(banger, "closed", BEYOND, ECHO_PORT)
    assert len(own_host.services.connected) == 1
    assert ssh_answers(banger, "closed")
    shutil.rmtree(programs)
