"""Bad input and bad days: a clear error with a next step, and nothing left behind."""

import contextlib
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest

from banger.engine.boot import BOOT_MARK, TIMER_LOST
from banger.host import probe
from tests.framework.installation import CACHE, Installation, wait_until

needs_loop = pytest.mark.skipif(not probe.loop(), reason=f"no loop mount: {probe.loop().why}")


@pytest.mark.parametrize(
    ("options", "status"),
    [
        (["--name", ""], 2),
        (["--name", "x" * 200], 2),
        (["--name", "naïve"], 2),
        (["--name", "../x"], 2),
        (["--vcpus", "0"], 2),
        (["--memory", "0"], 2),
        (["--memory", "99999999999T"], 2),
        (["--disk-size", "1M"], 2),
        (["--disk-size", "1G"], 2),
        (["--work-size", "banana"], 2),
        (["--image", "plan9"], 3),
        (["--forward", "x:y"], 2),
        (["--vmm", "firecracker"], 5),
    ],
)
def test_bad_input_gets_an_error_with_a_next_step(vm, options, status):
    done = vm.run("vm", "create", *options, check=False)
    assert done.returncode == status, done.stderr
    assert re.search(r"^error: \S", done.stderr, re.MULTILINE)
    assert re.search(r"^hint: \S", done.stderr, re.MULTILINE), done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert [machine["name"] for machine in vm.json("vm", "list")] == ["box"]


def test_a_taken_name_is_refused(vm):
    done = vm.create("box", check=False)
    assert done.returncode == 4
    assert "taken" in done.stderr


def test_unknown_vms_are_status_3(vm):
    for verb in ("show", "start", "stop", "delete", "ssh", "logs", "health"):
        assert vm.run("vm", verb, "nobody", check=False).returncode == 3


def test_without_qemu_create_names_the_package(tmp_path, image):
    banger = Installation(tmp_path / "x", qemu_path="/nonexistent/qemu")
    try:
        done = banger.create("one", check=False)
        assert done.returncode == 5, done.stderr
        assert "hint:" in done.stderr
        assert banger.json("vm", "list") == []
    finally:
        assert banger.close() == []


def test_a_broken_qemu_is_told_in_its_own_words(tmp_path, image):
    fake = tmp_path / "qemu"
    fake.write_text(
        "#!/bin/sh\ncase $1 in --version) echo 'QEMU emulator version 9.9.9';; "
        "-machine) echo 'microvm';; *) echo 'qemu: my disk is full of eels' >&2; exit 1;; esac\n"
    )
    fake.chmod(0o755)
    banger = Installation(tmp_path / "x", qemu_path=str(fake))
    try:
        done = banger.create("one", check=False)
        assert done.returncode == 5, done.stderr
        assert "full of eels" in done.stderr
        assert banger.json("vm", "list") == []
    finally:
        assert banger.close() == []


@pytest.fixture
def own_image(tmp_path, image):
    """An installation whose image is a copy of its own, and the copy's directory."""
    banger = Installation(tmp_path / "x")
    (banger.state / "images").unlink()
    copy = banger.state / "images" / image["id"]
    subprocess.run(
        ["cp", "-a", "--sparse=always", CACHE / "images" / image["id"], tmp_path / "copy"],
        check=True,
    )
    copy.parent.mkdir()
    shutil.move(tmp_path / "copy", copy)
    yield banger, copy
    assert banger.close() == []


@pytest.mark.parametrize("damage", ["delete", "truncate"])
def test_damaged_image_files_are_named_before_a_start(own_image, damage):
    banger, copy = own_image
    banger.create("one", "--no-start")
    victim = copy / "initramfs.img"
    if damage == "delete":
        victim.unlink()
    else:
        os.chmod(victim, 0o644)
        os.truncate(victim, 1000)
    refused_for(banger, "initramfs.img")


def test_a_root_file_system_that_is_cut_short_under_a_running_vm_costs_that_vm_only(own_image):
    banger, copy = own_image
    banger.create("one")
    victim = copy / "rootfs.img"
    os.chmod(victim, 0o644)
    os.truncate(victim, 1 << 20)
    banger.run(
        "vm", "exec", "one", "--", "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches", check=False
    )
    banger.run(
        "vm", "exec", "one", "--", "cat", "/usr/bin/gcc", "/usr/bin/git", check=False, timeout=60
    )
    assert banger.vm("one")["state"] in {"running", "failed"}  # as its guest takes it
    banger.run("vm", "stop", "one", "--force")
    refused_for(banger, "rootfs.img")
    victim.unlink()
    refused_for(banger, "rootfs.img")
    banger.run("vm", "delete", "one")


def refused_for(banger, name):
    """A start is refused, names the file and says how to get it back; the VM stays as it was."""
    done = banger.run("vm", "start", "one", check=False)
    assert done.returncode == 5, done.stderr
    assert name in done.stderr
    assert "image build" in done.stderr
    assert banger.vm("one")["state"] == "stopped"
    assert not [p for p in banger.processes().values() if "qemu" in p]


def test_a_damaged_database_is_kept_aside_and_the_vms_recovered(banger):
    """Those at rest and those that run: these are adopted, not ended."""
    banger.create("one", "--no-start")
    banger.create("two")
    before = banger.vm("two")
    boot = banger.boot_id("two")
    banger.kill_daemon()
    for suffix in ("-wal", "-shm"):
        (banger.state / f"banger.db{suffix}").unlink(missing_ok=True)
    (banger.state / "banger.db").write_bytes(b"this is no database" * 1000)
    told = banger.run("vm", "list")
    (kept,) = banger.state.glob("banger.db.corrupt-*")
    warning = f"warning: the database was damaged and is kept as {kept}"
    assert told.stderr.count(warning) == 1
    assert warning in banger.run("daemon", "status").stderr
    assert banger.vm("one")["state"] == "stopped"
    after = banger.vm("two")
    assert (after["state"], after["status"]["pid"]) == ("running", before["status"]["pid"])
    wait_until(lambda: banger.vm("two")["ready"], 60)
    assert banger.boot_id("two") == boot
    assert banger.run("vm", "ssh", "two", "--", "echo", "still here").stdout == "still here\n"
    banger.run("vm", "stop", "two", "--force")


def test_a_stale_socket_and_lock_are_no_obstacle(banger):
    banger.run("vm", "list")
    banger.kill_daemon()
    assert (banger.runtime / "bangerd.sock").exists()
    assert banger.json("vm", "list") == []


def test_a_second_daemon_leaves_the_first_alone(banger):
    banger.run("vm", "list")
    pid = banger.daemon_pid()
    done = subprocess.run(
        [sys.executable, "-m", "banger.daemon.main"],
        env=banger.env,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, "already" in done.stderr) == (0, True)
    assert banger.daemon_pid() == pid


def test_two_first_commands_at_once_both_succeed(banger):
    running = [
        banger.start("vm", "list", stdout=subprocess.PIPE, stderr=subprocess.PIPE) for _ in range(4)
    ]
    for process in running:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err


def test_a_socket_path_that_is_too_long_is_explained(tmp_path, image):
    banger = Installation(tmp_path / "x")
    done = banger.run(
        "vm", "list", check=False, env={"BANGER_RUNTIME_DIR": str(tmp_path / ("y" * 120))}
    )
    assert done.returncode == 2, done.stderr
    assert "BANGER_RUNTIME_DIR" in done.stderr
    assert banger.close() == []


def test_a_state_directory_that_cannot_be_written_is_explained(tmp_path, image):
    (tmp_path / "file").write_text("")
    banger = Installation(tmp_path / "x")
    done = banger.run(
        "vm", "list", check=False, env={"BANGER_STATE_DIR": str(tmp_path / "file" / "state")}
    )
    assert done.returncode == 5, done.stderr
    assert "Traceback" not in done.stderr
    assert banger.close() == []


@contextlib.contextmanager
def small_disk(directory, size_mib):
    """A file system of its own, with so much room."""
    image_file = directory / "disk.img"
    with image_file.open("wb") as file:
        file.truncate(size_mib << 20)
    subprocess.run(["mkfs.ext4", "-q", "-F", "-m", "0", str(image_file)], check=True)
    mount = directory / "disk"
    mount.mkdir()
    subprocess.run(["mount", "-o", "loop", str(image_file), str(mount)], check=True)
    try:
        yield mount
    finally:
        subprocess.run(["umount", str(mount)], check=True)


@needs_loop
def test_a_full_state_disk_is_said_to_be_full(tmp_path, image):
    with small_disk(tmp_path, 48) as disk:
        banger = Installation(disk / "x")
        try:
            done = banger.create("one", check=False)
            assert done.returncode == 5, done.stderr
            assert "space" in done.stderr or "full" in done.stderr
            assert banger.json("vm", "list") == []
        finally:
            assert banger.close() == []


@needs_loop
def test_a_guest_that_fills_the_hosts_disk_waits_and_goes_on_when_there_is_room(tmp_path, image):
    with small_disk(tmp_path, 256) as disk:
        banger = Installation(disk / "x")
        try:
            banger.create("one")
            filler = disk / "filler"
            with filler.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, shutil.disk_usage(disk).free - (40 << 20))
            writer = banger.start(
                "vm", "exec", "one", "--", "sh", "-c",
                "head -c 80M /dev/urandom > /root/fill && sync && sha256sum < /root/fill | wc -c",
                stdout=subprocess.PIPE, text=True,
            )  # fmt: skip
            wait_until(
                lambda: "free space" in banger.json("vm", "health", "one", check=False)["detail"],
                90,
            )
            filler.unlink()
            banger.run("vm", "resume", "one")
            assert writer.communicate(timeout=90)[0].strip() == "68"
            assert writer.returncode == 0
        finally:
            assert banger.close() == []


@needs_loop
def test_a_read_only_state_disk_is_said_to_be_read_only(tmp_path, image):
    with small_disk(tmp_path, 64) as disk:
        banger = Installation(disk / "x")
        subprocess.run(["mount", "-o", "remount,ro", str(disk)], check=True)
        done = banger.run("vm", "list", check=False)
        assert done.returncode == 5, done.stderr
        assert "ead-only" in done.stderr
        assert "Traceback" not in done.stderr
        assert banger.close() == []


def test_ctrl_c_in_create_detaches_and_the_operation_goes_on(banger):
    process = banger.start(
        "vm",
        "create",
        "--name",
        "one",
        "--memory",
        "512M",
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    seen = threading.Event()
    lines = []

    def read():
        for line in process.stderr:
            lines.append(line)
            if "disks" in line:
                seen.set()

    thread = threading.Thread(target=read)
    thread.start()
    assert seen.wait(60), lines
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 130
    thread.join(60)
    process.stdout.close()
    process.stderr.close()
    (operation,) = re.findall(r"banger op wait (\w+)", "".join(lines))
    assert banger.json("op", "wait", operation, timeout=120)["state"] == "succeeded"
    assert banger.vm("one")["ready"]


@pytest.mark.timeout(900)
@pytest.mark.alone
@pytest.mark.parametrize("count", [6, pytest.param(20, marks=pytest.mark.long)])
def test_creates_at_once_all_succeed_and_the_next_daemon_adopts_them_all(banger, count):
    running = [
        banger.start(
            "vm",
            "create",
            "--name",
            f"vm-{n}",
            "--memory",
            "256M",
            "--work-size",
            "1G",
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for n in range(count)
    ]
    failures = []
    for process in running:
        out, err = process.communicate(timeout=850)
        if process.returncode:
            failures.append(out + err)
    assert failures == []
    vms = banger.json("vm", "list")
    assert [vm["ready"] for vm in vms] == [True] * count
    assert len({vm["status"]["ip"] for vm in vms}) == count
    banger.run("daemon", "stop")
    began = time.monotonic()
    adopted = banger.json("vm", "list")
    took_s = time.monotonic() - began
    print(f"{count} VMs adopted by the next daemon, and listed: {took_s:.2f} s")
    assert [(vm["state"], vm["status"]["pid"]) for vm in adopted] == [("running", vm["status"]["pid"]) for vm in vms]  # fmt: skip
    assert took_s < 10  # the promise is 2 s on a machine that does nothing else
    banger.run("vm", "delete", "--all", timeout=300)
    assert banger.json("vm", "list") == []


def hold_up(pid, console, said):
    """Let a VMM run for a moment at a time, until its guest has said ``said`` or the daemon has ended it for that. Whether it has: a test
    that is held up itself lets it run for longer, and it boots.

    The kernel takes its first measure at the end of a tick of 4 ms, and its last 25 ticks later: held up in the first tick for longer
    than all of them take, it reads both at once. So a moment is shorter than a tick, and the pause longer than 25.
    """
    end = time.monotonic() + 200
    with contextlib.suppress(ProcessLookupError):
        while True:
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.13)
            heard = b""
            with contextlib.suppress(FileNotFoundError):
                heard = console.read_bytes()
            os.kill(pid, signal.SIGCONT)
            if said in heard or BOOT_MARK in heard or time.monotonic() > end:
                return said in heard
            time.sleep(0.002)
    return True


@pytest.mark.long
@pytest.mark.timeout(1200)
def test_a_guest_whose_kernel_finds_no_timer_on_a_busy_host_is_started_again(banger):
    """Found with guests that hung before init, one in some hundred, without a word."""
    for _ in range(4):
        making = banger.start("vm", "create", "--name", "one", "--memory", "256M", "--work-size", "1G", stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)  # fmt: skip
        console = wait_until(lambda: next(banger.state.glob("vms/*/console.log"), None), 60)
        pid = wait_until(lambda: next((pid for pid, words in banger.processes().items() if re.match(r"\S*/qemu-system", words)), None), 60)  # fmt: skip
        lost = hold_up(pid, console, TIMER_LOST)
        out, err = making.communicate(timeout=200)
        assert making.returncode == 0, out + err
        if lost:
            break
        banger.run("vm", "delete", "one")
    assert lost, "no guest lost its timer"
    stages = banger.json("op", "list")[0]["stages"]
    states = [(stage["name"], stage["state"]) for stage in stages if stage["name"] == "boot"]
    assert states == [("boot", "failed"), ("boot", "succeeded")]
    assert "its kernel found no timer on the busy host" in err + out
    assert banger.vm("one")["ready"]


def test_a_port_that_is_taken_is_named(banger):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = banger.create("one", "--forward", f"{port}:80", check=False)
        assert done.returncode == 4, done.stderr
        assert str(port) in done.stderr
    assert banger.json("vm", "list") == []
