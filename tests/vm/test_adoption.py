"""VMs outlive their daemon, and the next one adopts them; what dies meanwhile is told truthfully."""

import os
import re
import signal
import subprocess
import time

from banger.client.sdk import Client
from tests.framework.installation import wait_until

DRAIN_S = "200"


def test_a_vm_outlives_kill_minus_9_of_the_daemon_and_is_adopted(banger):
    banger.create("one")
    before = banger.vm("one")
    boot = banger.boot_id("one")
    banger.kill_daemon()
    assert os.path.exists(f"/proc/{before['status']['pid']}")
    after = banger.vm("one")
    assert (after["state"], after["status"]["pid"]) == ("running", before["status"]["pid"])
    wait_until(lambda: banger.vm("one")["ready"], 60)
    assert banger.boot_id("one") == boot
    assert after["status"]["forwards"] == before["status"]["forwards"]
    assert banger.run("vm", "ssh", "one", "--", "echo", "still", "here").stdout == "still here\n"
    banger.run("vm", "stop", "one")
    assert banger.vm("one")["state"] == "stopped"


def test_an_adopted_vm_that_crashes_is_noticed_at_once(banger):
    banger.create("one")
    banger.kill_daemon()
    pid = banger.vm("one")["status"]["pid"]
    os.kill(pid, signal.SIGKILL)
    record = wait_until(lambda: (vm := banger.vm("one"))["state"] == "failed" and vm, 30)
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
    wait_until(lambda: "last words" in banger.run("vm", "logs", "one").stdout, 30)
    os.kill(banger.vm("one")["status"]["pid"], signal.SIGKILL)
    record = wait_until(lambda: (vm := banger.vm("one"))["state"] == "failed" and vm, 30)
    error = record["status"]["last_error"]
    assert "SIGKILL" in error["what"] + error["detail"]
    assert error["detail"].splitlines()[-1] == "last words"


def vmms(banger):
    """The pids of QEMUs."""
    return {pid for pid, text in banger.processes().items() if re.match(r"\S*qemu-system", text)}


def being_made(banger, name):
    """``vm create`` as it waits for its guest, the pid of the daemon that does it, and that of the VMM, which is held still: else the
    guest may be up before a command that is held up.
    """
    others, consoles = vmms(banger), set(banger.state.glob("vms/*/console.log"))
    process = banger.start(
        "vm", "create", "--name", name, "--memory", "256M", "--work-size", "1G",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    wait_until(
        lambda: any(
            path not in consoles and path.stat().st_size
            for path in banger.state.glob("vms/*/console.log")
        ),
        60,
    )
    (vmm,) = wait_until(lambda: vmms(banger) - others, 60)
    os.kill(vmm, signal.SIGSTOP)
    assert banger.json("op", "list")[0]["state"] == "running"
    return process, banger.daemon_pid(), vmm


def told_to_end(banger, pid):
    """The daemon ``pid`` has got one SIGTERM and drains."""
    log = banger.state / "bangerd.log"
    drains = f'"draining: 1 operations run, for {DRAIN_S} s at most"'
    before = log.read_text().count(drains)  # an earlier daemon's
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: log.read_text().count(drains) > before, 30)
    refused = banger.run("vm", "stop", "one", check=False)
    assert (refused.returncode, "the daemon is ending" in refused.stderr) == (4, True)


def test_a_daemon_told_to_end_finishes_what_it_began_and_told_twice_undoes_it(banger):
    banger.env["BANGER_DRAIN_S"] = DRAIN_S
    banger.create("one")
    making, pid, vmm = being_made(banger, "two")
    told_to_end(banger, pid)
    os.kill(vmm, signal.SIGCONT)
    out, err = making.communicate(timeout=200)
    assert making.returncode == 0, out + err
    wait_until(lambda: banger.daemon_pid() is None, 60)
    before = {vm["name"]: vm["status"]["pid"] for vm in banger.json("vm", "list")}
    assert set(before) == {"one", "two"}
    making, pid, _ = being_made(banger, "three")
    told_to_end(banger, pid)
    os.kill(pid, signal.SIGTERM)
    wait_until(lambda: banger.daemon_pid() is None, 60)
    out, err = making.communicate(timeout=60)
    assert making.returncode not in {0, 1}, out + err
    assert {vm["name"]: vm["status"]["pid"] for vm in banger.json("vm", "list")} == before
    assert banger.json("audit") == []


def seconds(banger):
    """The daemon's own answer to a list, in seconds: the least of nine. A busy host holds some of them up, a guest would hold up all."""
    times = []
    with Client(banger.runtime / "bangerd.sock") as client:
        client.vms()
        for _ in range(9):
            began = time.monotonic()
            assert [vm.name for vm in client.vms()] == ["one"]
            times.append(time.monotonic() - began)
    return min(times)


def test_a_stopped_agent_or_vmm_does_not_stop_list(banger):
    banger.create("one")
    stopping = banger.start(
        "vm", "exec", "one", "--", "sh", "-c", "kill -STOP $PPID; sleep 100",
        stdin=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        wait_until(lambda: not banger.json("vm", "health", "one", check=False)["reachable"], 60)
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
