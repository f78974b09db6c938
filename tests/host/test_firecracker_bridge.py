"""The real Firecracker with a guest in bridge mode: its TAP waits by name in the namespace, its uplink is routed by the host.

Runs where KVM is: see docs/explanation/test-host.md.
"""

import pytest

from banger.host import probe
from tests.framework.helper_host import host_state
from tests.framework.installation import Installation, wait_until
from tests.framework.net_host import BEYOND, ECHO_PORT, HOST_WAN, OwnHost
from tests.framework.ssh_banner import banner

pytestmark = [pytest.mark.firecracker, pytest.mark.timeout(900)]
LONG = ("--timeout", "300")


@pytest.fixture(scope="module")
def installation(firecracker, tmp_path_factory, image):
    for answer in (probe.kvm(), probe.root()):
        if not answer:
            pytest.skip(answer.why)
    host = OwnHost()
    before, directory = host_state(), tmp_path_factory.mktemp("banger")
    made = Installation(
        directory,
        firecracker_path=firecracker.firecracker,
        jailer_path=firecracker.jailer,
        helper_socket=directory / "none.sock",
        helper_state_dir=directory / "helper",
        network="bridge",
    )
    made.host = host
    yield made
    left = made.close()
    assert not left, f"left behind: {left}"
    wait_until(lambda: host_state() == before, 60, "the host is not as it was")
    host.close()


def reaches_the_world(installation):
    script = f"timeout 10 bash -c '</dev/tcp/{BEYOND}/{ECHO_PORT}'"
    done = installation.run("vm", "exec", "box", "--", "bash", "-c", script, check=False)
    return done.returncode == 0


def test_a_jailed_firecracker_has_its_guest_on_a_routed_uplink_and_in_user_mode_again(installation):
    done = installation.create("box", *LONG, timeout=400)
    assert "firecracker, kvm, jailed as uid" in done.stderr
    status = installation.vm("box")["status"]
    assert (status["vmm"], status["network"]) == ("firecracker", "bridge")
    assert banner(status["ip"]).startswith(b"SSH-2.0-")
    assert reaches_the_world(installation)
    wait_until(lambda: installation.host.world.connected, 30)
    assert installation.host.world.connected[-1][0] == HOST_WAN

    installation.run("vm", "set", "box", "--no-nat")
    assert not reaches_the_world(installation)
    assert banner(status["ip"]).startswith(b"SSH-2.0-")

    installation.run("vm", "stop", "box", timeout=120)
    installation.run("vm", "set", "box", "--network", "user", "--nat")
    installation.run("vm", "start", "box", *LONG, timeout=400)
    assert installation.vm("box")["status"]["network"] == "user"
    assert installation.run("vm", "exec", "box", "--", "echo", "in").stdout == "in\n"
