"""banger with the real Firecracker: a VM's life through daemon and CLI, in its jail as root. Runs where KVM is: see docs/explanation/test-host.md."""

import os
import signal
import time
from pathlib import Path

import pytest

from banger.host import cgroup, jail, probe
from tests.framework.installation import Installation, wait_until
from tests.framework.life import exec_ssh_and_cp_work

pytestmark = [pytest.mark.firecracker, pytest.mark.timeout(600)]
LONG = ("--timeout", "300")


@pytest.fixture(scope="module")
def installation(firecracker, tmp_path_factory, image):
    for answer in (probe.kvm(), probe.root()):
        if not answer:
            pytest.skip(answer.why)
    made = Installation(
        tmp_path_factory.mktemp("banger"),
        firecracker_path=firecracker.firecracker,
        jailer_path=firecracker.jailer,
    )
    yield made
    left = made.close()
    assert not left, f"left behind: {left}"
    assert not list(Path("/sys/fs/cgroup/banger").glob("*/")), "cgroups were left"


@pytest.fixture(scope="module")
def vm(installation):
    began = time.monotonic()
    done = installation.create("box", *LONG, timeout=400)
    print(f"created in {time.monotonic() - began:.1f} s\n{done.stderr}")
    assert "firecracker, kvm, jailed as uid" in done.stderr
    return installation


def status_of(installation, name="box"):
    pid = installation.vm(name)["status"]["pid"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return pid, {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}


def test_auto_takes_firecracker_and_the_vm_is_ready(vm):
    shown = vm.vm("box")
    assert (shown["spec"]["vmm"], shown["status"]["vmm"], shown["status"]["accel"]) == ("auto", "firecracker", "kvm")  # fmt: skip
    assert shown["ready"]
    assert shown["status"]["network"] == "user"
    words = ("systemctl", "is-system-running", "--wait")
    assert vm.run("vm", "exec", "box", "--", *words, timeout=120).stdout == "running\n"


def test_exec_ssh_and_cp_work(vm, tmp_path):
    exec_ssh_and_cp_work(vm, tmp_path)
    assert vm.run("vm", "exec", "box", "--", "df", "-B1", "--output=size", "/root").returncode == 0


def test_it_is_jailed_under_a_user_of_its_own_with_filters_and_without_powers(vm):
    pid, status = status_of(vm)
    uid = int(status["Uid"].split()[0])
    assert uid in jail.own_ids()
    assert set(status["Uid"].split()) == set(status["Gid"].split()) == {str(uid)}
    assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"]) == ("0" * 16, status["CapBnd"], "1")  # fmt: skip
    assert status["NSpid"].split()[-1] == "1"
    for task in Path(f"/proc/{pid}/task").iterdir():
        assert "Seccomp:\t2" in (task / "status").read_text(), task
    for kind in ("mnt", "net", "pid", "ipc", "uts"):
        assert os.readlink(f"/proc/{pid}/ns/{kind}") != os.readlink(f"/proc/self/ns/{kind}")
    assert not os.path.exists(f"/proc/{pid}/root/etc")
    assert not os.path.exists(f"/proc/{pid}/root{vm.state}/banger.db")


def test_its_memory_and_processes_are_limited_where_the_host_has_cgroups(vm):
    if not (answer := cgroup.probe()):
        assert answer.why.split(" (")[0] in vm.vm("box")["status"]["warning"]
        return
    group = Path("/sys/fs/cgroup/banger") / vm.vm("box")["id"]
    assert int((group / "memory.max").read_text()) == (512 + 128) << 20
    vmm = str(vm.vm("box")["status"]["pid"])
    pids = (group / "cgroup.procs").read_text().split()
    programs = [pid for pid in pids if Path(f"/proc/{pid}/cmdline").read_bytes()]
    assert programs == [vmm]  # KVM's threads of this VM are there too, and have no command line


def test_a_pause_stops_it_and_a_resume_lets_it_go_on(vm):
    vm.run("vm", "pause", "box")
    assert vm.vm("box")["state"] == "paused"
    vm.run("vm", "resume", "box")
    assert vm.run("vm", "exec", "box", "--", "echo", "on").stdout == "on\n"


def test_it_outlives_kill_minus_9_of_the_daemon_and_is_adopted(vm):
    before = vm.vm("box")["status"]["pid"]
    vm.kill_daemon()
    assert vm.vm("box")["status"]["pid"] == before
    wait_until(lambda: vm.vm("box")["ready"], 60)
    assert vm.run("vm", "exec", "box", "--", "echo", "adopted").stdout == "adopted\n"


def test_stop_set_and_start_keep_what_is_on_the_disks(vm):
    vm.run("vm", "exec", "box", "--", "sh", "-c", "echo kept > /root/kept; echo kept > /etc/kept")
    vm.run("vm", "stop", "box", timeout=120)
    assert vm.vm("box")["state"] == "stopped"
    vm.run("vm", "set", "box", "--memory", "640M", "--work-size", "2G")
    vm.run("vm", "start", "box", *LONG, timeout=400)
    assert vm.run("vm", "exec", "box", "--", "cat", "/root/kept", "/etc/kept").stdout == "kept\nkept\n"  # fmt: skip
    total = int(vm.run("vm", "exec", "box", "--", "sh", "-c", "awk '/MemTotal/ {print $2}' /proc/meminfo").stdout)  # fmt: skip
    assert total > 540 << 10


def test_a_killed_firecracker_is_shown_with_its_signal_and_nothing_is_left(vm):
    pid, _ = status_of(vm)
    os.kill(pid, signal.SIGKILL)
    shown = wait_until(lambda: (now := vm.vm("box"))["state"] == "failed" and now, 60)
    assert "SIGKILL" in shown["status"]["last_error"]["what"] + shown["status"]["last_error"]["detail"]  # fmt: skip
    assert not (Path("/sys/fs/cgroup/banger") / shown["id"]).exists()
    assert list(Path(vm.state / "vms" / shown["id"] / "jail").iterdir()) == []


def test_a_bad_kernel_is_reported_with_its_cause_in_time(vm, tmp_path):
    made = vm.json("image", "show", "debian")
    junk = tmp_path / "vmlinux"
    junk.write_bytes(b"\x7fELF" + bytes(1 << 16))
    done = vm.run("image", "register", "--name", "junk", "--from", made["name"], "--kernel", str(junk), check=False)  # fmt: skip
    assert done.returncode in {2, 5}
    assert "error:" in done.stderr
