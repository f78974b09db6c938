"""The life of a real Debian guest, driven by the CLI as a user would."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.framework.installation import wait_until
from tests.framework.stages import CREATE_STAGES
from tests.framework.terminal import Terminal


def guest_run(banger, name, *argv, **options):
    return banger.run("vm", "exec", name, "--", *argv, **options).stdout


def test_create_prints_the_stages_and_leaves_a_ready_debian(vm):
    record = vm.vm("box")
    assert record["state"] == "running"
    assert record["ready"] is True
    assert record["status"]["vmm"] == "qemu"
    creates = [op for op in vm.json("op", "list") if op["kind"] == "vm.create"]
    names = [stage["name"] for stage in creates[0]["stages"]]
    assert [*dict.fromkeys(names)] == CREATE_STAGES  # a boot that lost its timer was done again
    assert 'PRETTY_NAME="Debian' in guest_run(vm, "box", "cat", "/etc/os-release")


def test_systemd_is_running_with_no_failed_unit(vm):
    state = wait_until(
        lambda: (
            (
                out := vm.run(
                    "vm", "exec", "box", "--", "systemctl", "is-system-running", check=False
                ).stdout.strip()
            )
            not in {"starting", "initializing"}
            and out
        ),
        60,
    )
    failed = guest_run(vm, "box", "systemctl", "--failed", "--no-legend")
    assert (state, failed) == ("running", "")


def test_an_idle_guest_rests(vm):
    """A clock that it must not keep itself lets it stop its ticks, of which there would be 250 a second on every CPU."""
    clock = "/sys/devices/system/clocksource/clocksource0/current_clocksource"
    assert guest_run(vm, "box", "cat", clock).strip() in {"tsc", "kvm-clock"}

    def ticks():
        counts = guest_run(vm, "box", "grep", "LOC:", "/proc/interrupts").split()[1:]
        return sum(int(word) for word in counts if word.isdigit())

    def rests():
        before, began = ticks(), time.monotonic()
        time.sleep(3)
        return (ticks() - before) / (time.monotonic() - began) < 100

    assert wait_until(rests, 40)


def test_a_command_that_writes_before_it_reads_holds_nobody_up(vm):
    script = "head -c 8000000 /dev/zero | tr '\\0' a; wc -c >&2"
    done = vm.run("vm", "exec", "box", "--", "sh", "-c", script, stdin="b" * 8_000_000, timeout=60)
    assert (done.stdout, done.stderr.strip()) == ("a" * 8_000_000, "8000000")


def test_ssh_runs_a_command_and_gives_its_status(vm):
    assert (
        vm.run("vm", "ssh", "box", "--", "echo", "hello", "from", "$(hostname)").stdout
        == "hello from box\n"
    )
    assert vm.run("vm", "ssh", "box", "--", "exit 7", check=False).returncode == 7
    assert vm.run("ssh", "box", "--", "echo", "short").stdout == "short\n"


def test_ssh_sessions_are_ordinary_and_are_not_told_that_the_guest_is_booting(vm):
    done = vm.run(
        "vm",
        "ssh",
        "box",
        "--",
        "nice; systemd-tmpfiles --cat-config | grep -c /run/nologin || true",
    )
    assert done.stdout.split() == ["0", "0"], done.stderr


def test_the_work_disk_is_roots_home(vm):
    assert guest_run(vm, "box", "findmnt", "-no", "SOURCE", "/root").strip() == "/dev/vdb"
    size = int(guest_run(vm, "box", "df", "--output=size", "-B1", "/root").split()[1])
    assert 0.9 * 2**30 < size <= 2**30


def test_the_root_file_system_fills_its_drive(banger):
    banger.create("big", "--disk-size", "12G")
    sizes = wait_until(
        lambda: (
            (size := int(guest_run(banger, "big", "df", "--output=size", "-B1", "/").split()[1]))
            > 11 * 2**30
            and size
        ),
        30,
    )
    assert sizes


def test_stop_start_and_restart_keep_disks_identity_and_port(banger):
    banger.create("one")
    guest_run(banger, "one", "sh", "-c", "echo kept > /root/file; echo kept > /etc/file; sync")
    identity = guest_run(
        banger, "one", "cat", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub"
    )
    port = banger.vm("one")["status"]["forwards"]
    first = banger.boot_id("one")
    banger.run("vm", "stop", "one")
    stopped = banger.vm("one")
    assert (stopped["state"], stopped["ready"], stopped["status"]["pid"]) == (
        "stopped",
        False,
        None,
    )
    assert not [p for p in banger.processes().values() if "qemu" in p]
    banger.run("vm", "start", "one")
    banger.run("vm", "restart", "one")
    assert guest_run(banger, "one", "cat", "/root/file", "/etc/file") == "kept\nkept\n"
    assert (
        guest_run(banger, "one", "cat", "/etc/machine-id", "/etc/ssh/ssh_host_ed25519_key.pub")
        == identity
    )
    assert banger.vm("one")["status"]["forwards"] == port
    assert banger.boot_id("one") != first
    assert banger.run("vm", "ssh", "one", "--", "true").returncode == 0


def test_set_changes_a_stopped_vm(banger):
    banger.create("one")
    refused = banger.run("vm", "set", "one", "--vcpus", "1", check=False)
    assert refused.returncode == 4
    assert "is running" in refused.stderr
    banger.run("vm", "stop", "one")
    banger.run(
        "vm", "set", "one", "--name", "two", "--vcpus", "1", "--memory", "640M", "--work-size", "3G"
    )
    banger.run("vm", "start", "two")
    assert guest_run(banger, "two", "nproc").strip() == "1"
    assert guest_run(banger, "two", "hostname").strip() == "two"
    assert (
        int(guest_run(banger, "two", "df", "--output=size", "-B1", "/root").split()[1])
        > 2.7 * 2**30
    )
    assert banger.run("vm", "ssh", "two", "--", "true").returncode == 0


def test_two_vms_share_no_identity_and_list_shows_both(banger):
    banger.create("one")
    banger.create("two")
    script = "cat /etc/machine-id /etc/ssh/ssh_host_ed25519_key.pub /etc/banger/agent-token; hostname; cat /proc/sys/kernel/random/boot_id"
    one = guest_run(banger, "one", "sh", "-c", script).splitlines()
    two = guest_run(banger, "two", "sh", "-c", script).splitlines()
    assert not set(one) & set(two)
    assert {vm["name"] for vm in banger.json("vm", "list")} == {"one", "two"}
    banger.run("vm", "delete", "one")
    assert [vm["name"] for vm in banger.json("vm", "list")] == ["two"]


def test_run_with_rm_gives_the_commands_status_and_leaves_nothing(banger):
    done = banger.run(
        "run",
        "--rm",
        "--name",
        "gone",
        "--memory",
        "512M",
        "--",
        "sh",
        "-c",
        "echo inside; exit 3",
        check=False,
    )
    assert done.returncode == 3, done.stderr
    assert done.stdout.endswith("inside\n")
    assert banger.json("vm", "list") == []
    wait_until(
        lambda: all(
            "net" in item or "slirp" in item or "holder" in item for item in banger.leftovers()
        ),
        30,
    )


def test_pause_stops_the_guest_and_resume_lets_it_go_on(banger):
    banger.create("one")
    banger.run("vm", "pause", "one")
    assert banger.vm("one")["state"] == "paused"
    assert banger.json("vm", "health", "one", check=False)["reachable"] is False
    banger.run("vm", "resume", "one")
    assert guest_run(banger, "one", "echo", "awake") == "awake\n"


def test_a_guest_that_powers_off_by_itself_is_stopped(banger):
    banger.create("one")
    banger.run("vm", "exec", "one", "--", "systemctl", "poweroff", check=False)
    wait_until(lambda: banger.vm("one")["state"] == "stopped", 60)
    assert banger.vm("one")["status"]["last_error"] is None


def test_a_guest_that_reboots_comes_back(banger):
    """Also one whose QEMU was held up for so long that its monitor was given up: then its console alone tells a reboot."""
    banger.create("one")
    before = banger.boot_id("one")
    pid = banger.vm("one")["status"]["pid"]
    os.kill(pid, signal.SIGSTOP)
    try:
        assert banger.json("vm", "health", "one", check=False)["reachable"] is False
    finally:
        os.kill(pid, signal.SIGCONT)
    banger.run("vm", "exec", "one", "--", "systemctl", "reboot", check=False)
    wait_until(lambda: banger.vm("one")["status"]["pid"] not in {pid, None}, 90)
    wait_until(lambda: banger.vm("one")["ready"], 90)
    assert banger.boot_id("one") != before


def test_a_guest_that_panics_is_shown_with_the_consoles_last_lines(banger):
    banger.create("one")
    banger.run(
        "vm",
        "exec",
        "one",
        "--",
        "sh",
        "-c",
        "echo 1 > /proc/sys/kernel/sysrq; echo c > /proc/sysrq-trigger",
        check=False,
        timeout=60,
    )
    record = wait_until(lambda: (vm := banger.vm("one"))["state"] == "failed" and vm, 60)
    assert "panicked" in record["status"]["last_error"]["what"]
    assert "Kernel panic" in record["status"]["last_error"]["detail"]
    banger.run("vm", "start", "one")
    assert banger.vm("one")["ready"]


@pytest.mark.timeout(400)
def test_a_guest_that_never_gets_ready_times_out(banger):
    """Its VMM is stopped as soon as it is there. No guest is fast enough for that."""
    with stopping_vmms(banger):
        done = banger.create("one", "--timeout", "3", check=False)
    assert done.returncode == 6, done.stderr
    assert "not ready within 3 s" in done.stderr
    assert "hint:" in done.stderr
    never_ready(banger)
    banger.run("vm", "start", "one")
    assert banger.vm("one")["ready"]


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_guest_whose_init_is_no_init_times_out_with_the_consoles_tail(banger):
    banger.create("one")
    script = "printf '#!/bin/sh\\nexec sleep 100000\\n' > /sbin/idle; chmod 755 /sbin/idle; ln -sf idle /sbin/init; sync"
    guest_run(banger, "one", "sh", "-c", script)
    banger.run("vm", "stop", "one")
    # In which init is reached on a busy host too.
    done = banger.run("vm", "start", "one", "--timeout", "45", check=False)
    assert done.returncode == 6, done.stderr
    assert "its agent did not answer" in done.stderr
    assert "last lines of the console" in done.stderr
    assert "banger: booted" in done.stderr
    never_ready(banger)
    banger.run("vm", "delete", "one")


def never_ready(banger):
    record = banger.vm("one")
    assert (record["state"], record["status"]["pid"]) == ("stopped", None)
    assert record["status"]["last_error"]["code"] == "guest-not-ready"
    assert not [p for p in banger.processes().values() if "qemu" in p]


@contextlib.contextmanager
def stopping_vmms(banger):
    """Every VMM gets SIGSTOP once its guest's console has begun: a guest that never gets further."""
    over = threading.Event()

    def stop():
        while not over.wait(0.01):
            consoles = [p for p in banger.state.glob("vms/*/console.log") if p.stat().st_size]
            for pid, words in banger.processes().items():
                if consoles and re.match(r"\S*qemu-system", words):
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGSTOP)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_console_and_vmm_logs_can_be_read_and_followed(vm):
    assert "banger: booted" in vm.run("vm", "logs", "box").stdout
    assert vm.run("vm", "logs", "box", "-n", "1").stdout.count("\n") <= 1
    (vmm_log,) = vm.state.glob("vms/*/vmm.log")
    with vmm_log.open("a") as file:  # as its VMM would
        file.write("qemu: a warning of the vmm\n")
    assert "a warning of the vmm" in vm.run("vm", "logs", "box", "--vmm").stdout
    assert "a warning of the vmm" not in vm.run("vm", "logs", "box").stdout

    def speak():
        guest_run(vm, "box", "sh", "-c", "echo followed-$((40 + 2)) > /dev/console")

    def note():
        with (vm.state / "bangerd.log").open("a") as log:
            log.write('{"level": "info", "message": "the daemon says 42"}\n')

    with following(vm, "vm", "logs", "box", "-f", "-n", "0") as lines:
        wait_until(lambda: speak() or any("followed-42" in line for line in lines), 30)
    with following(vm, "daemon", "logs", "-f", "-n", "0") as lines:
        wait_until(lambda: note() or any("the daemon says 42" in line for line in lines), 30)


@contextlib.contextmanager
def following(banger, *argv):
    """The lines that a command prints until Ctrl-C, as they come."""
    process = banger.start(*argv, stdout=subprocess.PIPE, text=True, start_new_session=True)
    lines = []

    thread = threading.Thread(target=lambda: lines.extend(process.stdout))
    thread.start()
    try:
        yield lines
    finally:
        process.send_signal(signal.SIGINT)
        status = process.wait(60)
        thread.join(60)
        process.stdout.close()
    assert status == 130


def test_stats_and_ports_show_host_and_guest(vm):
    # The guest's half is null while it is too busy to answer in time.
    stats = wait_until(lambda: (s := vm.json("vm", "stats", "box"))["guest_uptime_s"] and s, 60)
    assert stats["vmm_rss_bytes"] > 50 << 20
    assert stats["guest_memory_total_bytes"] > 300 << 20
    if vm.vm("box")["status"]["network"] != "qemu-user":  # whose frames nobody counts
        vm.run("vm", "exec", "box", "--", "sh", "-c", "getent hosts name.test || true")
        later = vm.json("vm", "stats", "box")
        assert later["net_sent_bytes"] > stats["net_sent_bytes"] >= 0
        assert later["net_received_bytes"] > 0
    ports = vm.json("vm", "ports", "box")
    (ssh,) = [port for port in ports if port["port"] == 22 and port["protocol"] == "tcp"]
    assert ssh["host_port"]


def test_copies_in_and_out_are_byte_exact(vm, tmp_path):
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "blob").write_bytes(os.urandom(64 << 20))
    (tree / "run").write_text("#!/bin/sh\n")
    (tree / "run").chmod(0o755)
    (tree / "link").symlink_to("run")
    vm.run("vm", "cp", str(tree), "box:/root/copied")
    back = tmp_path / "back"
    vm.run("vm", "cp", "box:/root/copied", str(back))
    assert (
        subprocess.run(["diff", "-r", "--no-dereference", tree, back], check=False).returncode == 0
    )
    assert (back / "run").stat().st_mode & 0o777 == 0o755
    assert os.readlink(back / "link") == "run"
    guest_run(vm, "box", "rm", "-rf", "/root/copied")


def test_plain_ssh_scp_and_rsync_work_through_the_include(vm, tmp_path):
    vm.run("setup", "ssh", env={"HOME": str(tmp_path)})
    path = tmp_path / ".ssh" / "config"
    env = {**vm.env, "PATH": os.environ["PATH"]}
    (tmp_path / "file").write_bytes(b"x" * 100_000)
    ssh = ["ssh", "-F", str(path)]
    assert (
        subprocess.run(
            [*ssh, "box.banger", "hostname"], check=False, env=env, capture_output=True, text=True
        ).stdout
        == "box\n"
    )
    assert (
        subprocess.run(
            ["scp", "-q", "-F", str(path), str(tmp_path / "file"), "box.banger:/tmp/f"],
            env=env,
            check=False,
        ).returncode
        == 0
    )
    assert (
        subprocess.run(
            ["rsync", "-e", " ".join(ssh), "box.banger:/tmp/f", str(tmp_path / "g")],
            env=env,
            check=False,
        ).returncode
        == 0
    )
    assert (tmp_path / "g").read_bytes() == b"x" * 100_000


@pytest.mark.parametrize("mode", ["none"])
def test_a_vm_without_network_is_still_reached_through_the_agent(banger, mode):
    banger.create("alone", "--network", mode)
    assert guest_run(banger, "alone", "sh", "-c", "ls /sys/class/net").split() == ["lo"]
    assert banger.run("vm", "ssh", "alone", "--", "echo", "hi").stdout == "hi\n"


def test_a_create_that_is_cancelled_leaves_nothing(banger):
    operation = banger.create("one", "--no-wait").stdout.strip()
    found = wait_until(lambda: [pid for pid, words in banger.processes().items() if re.match(r"\S*qemu-system", words)], 60)  # fmt: skip
    os.kill(found[0], signal.SIGSTOP)  # else the guest may be up before a command that is held up
    banger.run("op", "cancel", operation)
    assert banger.json("op", "show", operation)["state"] == "cancelled"
    assert banger.json("vm", "list") == []
    assert not [p for p in banger.processes().values() if "qemu" in p]
    assert list(banger.state.glob("vms/*")) == []
    assert list(banger.runtime.glob("vms/*")) == []


def test_the_daemon_is_started_stopped_and_started_by_hand(vm):
    vm.run("daemon", "stop")
    assert vm.daemon_pid() is None
    assert vm.run("daemon", "status", check=False).returncode == 7
    started = vm.json("daemon", "start")
    assert started["pid"] == vm.daemon_pid()
    assert vm.json("daemon", "start")["pid"] == started["pid"]
    assert started["vms"] == 1
    wait_until(lambda: vm.vm("box")["ready"], 60)


def test_an_image_with_nothing_changed_is_built_at_once(vm, image):
    began = time.monotonic()
    assert vm.json("image", "build", "debian-base", "--name", "debian")["id"] == image["id"]
    assert time.monotonic() - began < 30  # a build takes a minute


def on_terminal(banger, *argv):
    return Terminal(
        [sys.executable, "-m", "banger.cli.main", *argv], env={**banger.env, "TERM": "xterm"}
    )


def test_exec_on_a_terminal_is_a_session_in_the_guest(vm):
    with on_terminal(vm, "vm", "exec", "-t", "box", "--", "bash", "--norc") as screen:
        screen.wait_for("bash-")
        screen.type("tty; stty size; echo host-$(hostname)\r")
        screen.wait_for("/dev/pts/")
        screen.wait_for("24 80")
        screen.wait_for("host-box")
        screen.resize(33, 99)
        screen.type("until stty size | grep -q ^33; do sleep 0.2; done; stty size\r")
        screen.wait_for("33 99")
        screen.type("sh -c 'echo began-$((1 + 1)); exec sleep 1000'\r")
        screen.wait_for("began-2")  # what was typed is shown before it is begun
        screen.type("\x03")
        screen.type("exit 5\r")
        assert screen.process.wait(30) == 5
        assert screen.now() == screen.modes


def test_run_on_a_terminal_is_a_shell_in_a_fresh_vm(banger):
    options = ["--name", "shell", "--memory", "512M", "--work-size", "1G"]
    with on_terminal(banger, "run", "--rm", *options) as screen:
        screen.wait_for("root@shell", 120)
        screen.type("echo at-$(hostname) $(tty)\r")
        screen.wait_for("at-shell /dev/pts/")
        screen.type("exit 4\r")
        assert screen.process.wait(60) == 4
    assert banger.json("vm", "list") == []
