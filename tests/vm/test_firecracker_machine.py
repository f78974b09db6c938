"""A VM's life on the Firecracker backend through daemon and CLI, with a real Debian: a stand-in with QEMU plays Firecracker, unconfined.

The same with the real one and its jailer, where KVM is: tests/host/test_firecracker_banger.py.
"""

import os
import signal
import time

import pytest

from banger.client.sdk import Client
from banger.host import probe
from tests.framework.installation import Installation, wait_until
from tests.framework.life import exec_ssh_and_cp_work
from tests.framework.net_host import BEYOND, ECHO_PORT, OwnHost
from tests.framework.played import played_firecracker
from tests.framework.ssh_banner import banner

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def host():
    """The daemon lives on a host of its own: beyond it is a machine that echoes."""
    if not (answer := probe.root()):
        pytest.skip(f"a host of its own needs root: {answer.why}")
    made = OwnHost()
    yield made
    made.close()


@pytest.fixture(scope="module")
def vm(host, image, tmp_path_factory):
    directory = tmp_path_factory.mktemp("fc")
    program = played_firecracker(directory / "bin")
    made = Installation(
        directory / "home",
        firecracker_path=program,
        confine="off",
        helper_socket=directory / "none.sock",  # the daemon is root and makes uplinks itself
        helper_state_dir=directory / "helper",
    )
    try:
        done = made.create("box")
        assert "firecracker" in done.stderr
        yield made
    finally:
        left = made.close()
    assert not left, f"left behind: {left}"


def in_guest(vm, *argv, name="box", check=True):
    return vm.run("vm", "exec", name, "--", *argv, check=check)


def test_auto_takes_firecracker_and_debian_runs_with_no_failed_unit(vm):
    shown = vm.vm("box")
    assert (shown["spec"]["vmm"], shown["status"]["vmm"]) == ("auto", "firecracker")
    assert (shown["status"]["network"], shown["ready"]) == ("user", True)
    state = in_guest(vm, "systemctl", "is-system-running", "--wait", check=False).stdout
    assert (state, in_guest(vm, "systemctl", "--failed", "--no-legend").stdout) == ("running\n", "")


def test_exec_ssh_and_cp_work(vm, tmp_path):
    exec_ssh_and_cp_work(vm, tmp_path)


def test_the_console_is_heard_as_the_guest_writes_it(vm):
    with Client(vm.runtime / "bangerd.sock") as client, client.console("box") as stream:
        in_guest(vm, "sh", "-c", "echo heard-by-all > /dev/console")
        heard, end = b"", time.monotonic() + 60
        while b"heard-by-all" not in heard:
            heard += stream.receive(max(0.0, end - time.monotonic())) or b""
            assert time.monotonic() < end, heard
    assert b"banger: booted" in heard


def test_a_resumed_guest_has_the_right_time(vm):
    vm.run("vm", "pause", "box")
    assert vm.vm("box")["state"] == "paused"
    time.sleep(10)
    vm.run("vm", "resume", "box")
    began = time.time()
    off = float(in_guest(vm, "date", "+%s.%N").stdout) - began
    # As late as the guest was held up while it was told, but not by all the time that it stood still.
    assert -5 < off < time.time() - began + 0.5


def test_it_outlives_kill_minus_9_of_the_daemon_and_is_adopted(vm):
    before = vm.vm("box")["status"]["pid"]
    vm.kill_daemon()
    assert vm.vm("box")["status"]["pid"] == before
    wait_until(lambda: vm.vm("box")["ready"], 60)
    assert in_guest(vm, "echo", "adopted").stdout == "adopted\n"


def test_without_nat_only_the_way_in_is_open(vm, host):
    vm.create("closed", "--no-nat")
    script = f"bash -c '</dev/tcp/{BEYOND}/{ECHO_PORT}'"
    assert in_guest(vm, "bash", "-c", f"timeout 60 {script}", check=False).returncode == 0
    closed = in_guest(vm, "bash", "-c", f"timeout 4 {script}", name="closed", check=False)
    assert closed.returncode != 0
    assert len(host.world.connected) == 1
    assert vm.run("vm", "ssh", "closed", "--", "echo", "inside").stdout == "inside\n"
    vm.run("vm", "delete", "closed")


def test_stop_set_and_start_keep_what_is_on_the_disks(vm):
    in_guest(vm, "sh", "-c", "echo kept | tee /root/kept > /etc/kept")
    vm.run("vm", "stop", "box")
    assert vm.vm("box")["state"] == "stopped"
    vm.run("vm", "set", "box", "--vcpus", "1", "--memory", "640M", "--work-size", "2G")
    vm.run("vm", "start", "box")
    script = "cat /root/kept /etc/kept; nproc; df -B1 --output=size /root | tail -1"
    *kept, cpus, size = in_guest(vm, "sh", "-c", script).stdout.split()
    assert (kept, cpus) == (["kept", "kept"], "1")
    assert int(size) > 3 << 29


def test_it_changes_to_bridge_mode_and_the_host_reaches_it_by_its_address(vm):
    vm.run("vm", "stop", "box")
    vm.run("vm", "set", "box", "--network", "bridge")
    vm.run("vm", "start", "box")
    status = vm.vm("box")["status"]
    assert (status["vmm"], status["network"]) == ("firecracker", "bridge")
    assert banner(status["ip"]).startswith(b"SSH-2.0-")
    script = f"timeout 60 bash -c '</dev/tcp/{BEYOND}/{ECHO_PORT}'"
    assert in_guest(vm, "bash", "-c", script, check=False).returncode == 0
    assert in_guest(vm, "cat", "/root/kept").stdout == "kept\n"


def test_a_power_off_and_a_reboot_inside_are_told_apart(vm):
    before = vm.vm("box")["status"]["pid"]
    in_guest(vm, "systemctl", "reboot", "--no-block", check=False)
    wait_until(lambda: (now := vm.vm("box"))["ready"] and now["status"]["pid"] != before, 90)
    in_guest(vm, "systemctl", "poweroff", "--no-block", check=False)
    wait_until(lambda: vm.vm("box")["state"] == "stopped", 60)
    vm.run("vm", "start", "box")


def test_a_killed_firecracker_is_shown_with_its_signal(vm):
    os.kill(vm.vm("box")["status"]["pid"], signal.SIGKILL)
    shown = wait_until(lambda: (now := vm.vm("box"))["state"] == "failed" and now, 30)
    error = shown["status"]["last_error"]
    assert "SIGKILL" in error["what"] + error["detail"]
