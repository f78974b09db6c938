"""A guest without NAT reaches nothing outside, on banger's own network and on QEMU's; one with NAT is the proof that there was a way."""

import shutil
from pathlib import Path

import pytest

from tests.framework.installation import wait_until
from tests.framework.net_host import BEYOND, ECHO_PORT

pytestmark = pytest.mark.timeout(600)


def ssh_answers(installation, name):
    done = installation.run("vm", "ssh", name, "--", "echo", "inside", check=False)
    return done.stdout == "inside\n"


def test_without_nat_only_the_way_in_is_open(banger, own_host):
    banger.create("open")
    banger.create("closed", "--no-nat")
    assert banger.vm("closed")["status"]["network"] == "user"
    assert banger.connects("open", BEYOND, ECHO_PORT)
    assert not banger.connects("closed", BEYOND, ECHO_PORT, within_s=4)
    assert not banger.connects("closed", "10.113.0.2", 53, within_s=4)
    assert len(own_host.world.connected) == 1
    assert ssh_answers(banger, "closed")
    banger.run("daemon", "stop")  # the next one adopts the network and its filter
    assert not banger.connects("closed", BEYOND, ECHO_PORT, within_s=4)
    assert banger.connects("open", BEYOND, ECHO_PORT)


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
    assert banger.connects("open", gateway, ECHO_PORT)
    wait_until(lambda: len(own_host.services.connected) == 1, 30)  # its thread may take it up later
    assert not banger.connects("closed", gateway, ECHO_PORT, within_s=4)
    assert not banger.connects("closed", BEYOND, ECHO_PORT, within_s=4)
    assert len(own_host.services.connected) == 1
    assert ssh_answers(banger, "closed")
    shutil.rmtree(programs)
