"""The ground that banger's Firecracker stands on, without banger: what the real program does with banger's images and files.

It runs on a machine with KVM, or in a test host (`scripts/testhost.sh`). What the backend takes for granted is held here.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from banger.host import probe
from tests.framework.bare_firecracker import BOOT_ARGS, BareFirecracker
from tests.framework.installation import wait_until

pytestmark = [pytest.mark.firecracker, pytest.mark.timeout(600)]
BOOTED = "banger: booted"
MODULES = "virtio_mmio virtio_blk virtio_net virtio_rng vsock vmw_vsock_virtio_transport".split()
UID = 60606


@contextlib.contextmanager
def bare(firecracker):
    """A process that waits for its configuration; killed at the end, and its files removed."""
    directory = Path(tempfile.mkdtemp(prefix="bare-", dir=os.environ.get("BANGER_TEST_CACHE")))
    machine = BareFirecracker(firecracker.firecracker, directory)
    try:
        yield machine
    finally:
        machine.close()
        shutil.rmtree(directory)


@contextlib.contextmanager
def booted(firecracker, image):
    """A guest whose agent answers."""
    with bare(firecracker) as machine:
        machine.prepare(image)
        machine.configure(image)
        machine.start()
        booted_s, answered_s = machine.wait_console(BOOTED), machine.wait_agent()
        print(f"booted after {booted_s:.2f} s, the agent answered after {answered_s:.2f} s")
        yield machine


@pytest.fixture(scope="module")
def guest(firecracker, test_image):
    """A guest that tests leave as it is."""
    with booted(firecracker, test_image) as machine:
        yield machine


@pytest.fixture
def mortal(firecracker, test_image):
    """A guest of the test's own."""
    with booted(firecracker, test_image) as machine:
        yield machine


@pytest.fixture
def idle(firecracker):
    """A process that waits for its configuration."""
    with bare(firecracker) as machine:
        yield machine


def test_kvm_makes_virtual_machines_here(firecracker):
    assert probe.kvm().found == "/dev/kvm"


def test_firecracker_and_jailer_are_of_one_version(firecracker):
    done = subprocess.run(
        [firecracker.jailer, "--version"], capture_output=True, text=True, check=True
    )
    assert re.match(r"Jailer v(\S+)", done.stdout)[1] == firecracker.version


def test_the_agent_and_ssh_of_the_image_are_ready(guest):
    status, health = guest.ask("GET", "/healthz?wait_ms=60000")
    assert (status, health["status"]) == (200, "ok")
    assert [service["ready"] for service in health["services"]] == [True]


def test_the_initramfs_has_loaded_every_driver(guest):
    known, _ = guest.run("sh", "-c", "cat /proc/modules /lib/modules/$(uname -r)/modules.builtin")
    assert [name for name in MODULES if not re.search(rf"\b{name}\b", known)] == []


def test_drives_appear_in_the_order_of_the_configuration(guest):
    script = "findmnt -no SOURCE /; findmnt -no SOURCE /root; cat /sys/block/vd?/ro"
    out, status = guest.run("sh", "-c", script)
    assert (out.split(), status) == (["/dev/vda", "/dev/vdb", "0", "0", "1"], 0)


def test_a_port_that_nobody_listens_on_closes_the_connection(guest):
    with pytest.raises(ConnectionError, match="port 4711"):
        guest.connect(4711)


def test_a_hundred_connections_to_the_agent_are_open_at_once(guest):
    opened = [guest.connect(1024, 30) for _ in range(100)]
    try:
        assert guest.ask("GET", "/healthz")[0] == 200
    finally:
        for connection in opened:
            connection.close()


def test_the_agent_answers_again_after_it_was_restarted(guest):
    before = guest.run("systemctl", "show", "-P", "MainPID", "banger-agent")[0]
    guest.run("systemd-run", "--on-active=0.2", "systemctl", "restart", "banger-agent")

    def pid():
        guest.wait_agent(30)
        return guest.run("systemctl", "show", "-P", "MainPID", "banger-agent")[0]

    def other():
        try:
            return pid() != before
        except (OSError, AssertionError):
            return False  # it went in the middle of the question

    wait_until(other, 60)


def test_a_paused_guest_goes_on_where_it_was(guest):
    assert guest.call("PATCH", "/vm", {"state": "Paused"})[0] == 204
    assert guest.call("GET", "/")[1]["state"] == "Paused"
    assert guest.call("PATCH", "/vm", {"state": "Resumed"})[0] == 204
    assert guest.ask("GET", "/healthz")[0] == 200


def test_seccomp_filters_are_on(guest):
    status = Path(f"/proc/{guest.process.pid}/status").read_text()
    assert "Seccomp:\t2\n" in status, "this Firecracker was built without filters"
    assert "NoNewPrivs:\t1\n" in status


def test_what_must_come_before_the_boot_is_refused_after_it(guest):
    for path, body in (
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 256}),
        ("/boot-source", {"kernel_image_path": "/vmlinux"}),
        ("/actions", {"action_type": "InstanceStart"}),
    ):
        status, answer = guest.call("PUT", path, body)
        assert (status, answer["fault_message"]) == (
            400, "The requested operation is not supported after starting the microVM.",
        )  # fmt: skip


@pytest.mark.parametrize(
    ("path", "body", "fault"),
    [
        ("/boot-source", {"kernel_image_path": "/no/kernel"}, "The kernel file cannot be opened: No such file"),
        ("/drives/a", {"drive_id": "a", "path_on_host": "/no/disk", "is_root_device": False}, "No such file"),
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 256, "cores": 2}, "unknown field `cores`"),
        ("/machine-config", {"vcpu_count": 33, "mem_size_mib": 256}, "The number of vCPUs"),
        ("/vsock", {"guest_cid": 3, "uds_path": "/tmp/" + "x" * 110}, "path must be shorter than SUN_LEN"),
        ("/actions", {"action_type": "InstanceStart"}, "Cannot start microvm without kernel"),
    ],
)  # fmt: skip
def test_a_bad_configuration_is_refused_and_the_process_lives_on(idle, path, body, fault):
    status, answer = idle.call("PUT", path, body)
    assert status == 400
    assert fault in answer["fault_message"]
    assert idle.process.poll() is None


def test_a_stale_api_socket_ends_it_at_once(firecracker, tmp_path):
    (tmp_path / "api.sock").touch()
    done = subprocess.run(
        [firecracker.firecracker, "--api-sock", tmp_path / "api.sock"],
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert "Failed to open the API socket" in done.stdout


def test_powering_off_ends_the_process_and_says_so_on_the_console(mortal):
    assert mortal.ask("POST", "/shutdown", {"reboot": False})[0] == 204
    assert mortal.wait_end()[0] == 0
    assert "banger: powered off" in mortal.console()
    assert "reboot: Restarting system" in mortal.console()


def test_a_reboot_ends_the_process(mortal):
    assert mortal.ask("POST", "/shutdown", {"reboot": True})[0] == 204
    assert mortal.wait_end()[0] == 0
    assert "reboot: Restarting system" in mortal.console()
    assert "banger: powered off" not in mortal.console()


def test_a_panic_ends_the_process_with_its_cause_on_the_console(mortal):
    with pytest.raises((ConnectionError, TimeoutError)):
        mortal.run("sh", "-c", "echo c > /proc/sysrq-trigger")
    assert mortal.wait_end()[0] == 0
    assert "Kernel panic - not syncing: sysrq triggered crash" in mortal.console()


def test_without_drives_the_initramfs_says_which_is_missing(idle, test_image):
    (idle.directory / "firecracker.log").touch()
    idle.put(
        "/boot-source", kernel_image_path=str(test_image / "vmlinux"),
        initrd_path=str(test_image / "initramfs.img"), boot_args=BOOT_ARGS,
    )  # fmt: skip
    idle.start()
    assert idle.wait_end(120)[0] == 0
    assert "banger: drive /dev/vda did not appear" in idle.console()


@pytest.fixture
def jailed(firecracker):
    """A jailed process that waits for its configuration: its pid and its root directory."""
    base = Path(tempfile.mkdtemp(prefix="bgr-jail-", dir="/tmp"))
    base.chmod(0o755)
    argv = [firecracker.jailer, "--id", "jailed", "--exec-file", firecracker.firecracker.resolve()]
    argv += ["--uid", str(UID), "--gid", str(UID), "--chroot-base-dir", base, "--new-pid-ns"]
    argv += ["--cgroup-version", "2", "--", "--api-sock", "api.sock"]
    log = base / "log"
    with log.open("wb") as file:  # no pipe: the jailed process keeps it when the jailer has ended
        done = subprocess.run(argv, stdout=file, stderr=file, timeout=60, check=False)
    assert done.returncode == 0, log.read_text()
    root = base / firecracker.firecracker.resolve().name / "jailed" / "root"
    pid = int((root / f"{firecracker.firecracker.resolve().name}.pid").read_text())
    wait_until((root / "api.sock").exists, 60)
    yield pid, root
    os.kill(pid, 9)
    wait_until(lambda: not Path(f"/proc/{pid}").exists(), 60)
    shutil.rmtree(base)


def test_the_jailer_gives_the_process_a_user_and_a_root_of_its_own(jailed):
    pid, root = jailed
    status = Path(f"/proc/{pid}/status").read_text()
    assert f"Uid:\t{UID}\t{UID}\t{UID}\t{UID}\n" in status
    assert "CapEff:\t0000000000000000\n" in status
    assert Path(f"/proc/{pid}/root").stat().st_ino == root.stat().st_ino
    assert os.readlink(f"/proc/{pid}/ns/pid") != os.readlink("/proc/self/ns/pid")
    visible = {str(path.relative_to(root)) for path in root.rglob("*")}
    assert visible >= {"dev/kvm", "dev/net/tun", "api.sock"}
    assert not any(name.startswith(("etc", "home", "root", "srv", "usr")) for name in visible)
