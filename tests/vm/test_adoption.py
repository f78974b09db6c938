"""VMs outlive their daemon, and the next one adopts them; what dies meanwhile is told truthfully."""

import os
import signal
import subprocess
import time

from banger.client.sdk import Client
from tests.framework.installation import wait_until


def test_a_vm_outlives_kill_minus_9_of_the_daemon_and_is_adopted(banger):
    banger.create("one")
    before = banger.vm("one")
    boot_id = banger.json("vm", "health", "one")["boot_id"]
    banger.kill_daemon()
    assert os.path.exists(f"/proc/{before['status']['pid']}")
    after = banger.vm("one")
    assert (after["state"], after["status"]["pid"]) == ("running", before["status"]["pid"])
    wait_until(lambda: banger.vm("one")["ready"], 30)
    assert banger.json("vm", "health", "one")["boot_id"] == boot_id
    assert after["status"]["forwards"] == before["status"]["forwards"]
    assert banger.run("vm", "ssh", "one", "--", "echo", "still", "here").stdout == "still here\n"
    banger.run("vm", "stop", "one")
    assert banger.vm("one")["state"] == "stopped"


def test_an_adopted_vm_that_crashes_is_noticed_at_once(banger):
    banger.create("one")
    banger.kill_daemon()
    pid = banger.vm("one")["status"]["pid"]
    os.kill(pid, signal.SIGKILL)
    record = wait_until(lambda: (vm := banger.vm("one"))["state"] == "failed" and vm, 5)
    assert record["status"]["last_error"]["code"] == "vmm-died"


def test_a_vm_that_dies_while_no_daemon_runs_is_found_failed(banger):
    banger.create("one")
    pid = banger.vm("one")["status"]["pid"]
    banger.kill_daemon()
    os.kill(pid, signal.SIGKILL)
    assert banger.vm("one")["state"] == "failed"
    banger.run("vm", "start", "one")
    assert banger.vm("one")["ready"]


def test_qemu_killed_under_a_running_daemon_is_shown_with_its_signal_and_the_consoles_end(banger):
    banger.create("one")
    banger.run("vm", "exec", "one", "--", "sh", "-c", "echo last words > /dev/console")
    wait_until(lambda: "last words" in banger.run("vm", "logs", "one").stdout, 10)
    os.kill(banger.vm("one")["status"]["pid"], signal.SIGKILL)
    record = wait_until(lambda: (vm := banger.vm("one"))["state"] == "failed" and vm, 5)
    error = record["status"]["last_error"]
    assert "SIGKILL" in error["what"] + error["detail"]
    assert error["detail"].splitlines()[-1] == "last words"


def seconds(banger):
    """The daemon's own answer to a list, in seconds: the median of nine."""
    times = []
    with Client(banger.runtime / "bangerd.sock") as client:
        client.vms()
        for _ in range(9):
            began = time.monotonic()
            assert [vm.name for vm in client.vms()] == ["one"]
            times.append(time.monotonic() - began)
    return sorted(times)[4]


def test_a_stopped_agent_or_vmm_does_not_stop_list(banger):
    banger.create("one")
    stopping = banger.start(
        "vm", "exec", "one", "--", "sh", "-c", "kill -STOP $PPID; sleep 100",
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: not banger.json("vm", "health", "one", check=False)["reachable"], 30)
        assert seconds(banger) < 0.1
    finally:
        stopping.kill()
        stopping.wait()
    pid = banger.vm("one")["status"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert seconds(banger) < 0.1
        assert banger.json("vm", "health", "one", check=False)["reachable"] is False
        banger.run("vm", "delete", "one")
        assert not os.path.exists(f"/proc/{pid}")
    finally:
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGCONT)
