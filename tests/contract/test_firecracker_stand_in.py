"""The stand-in for Firecracker with guests of a few bytes: life and death of the process, and what changes after boot."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from banger.host import probe
from tests.framework.firecracker.install import ROOT, make_firecracker, needed_paths
from tests.framework.firecracker.play import Play
from tests.framework.firecracker.running import stand_in, wait_gone
from tests.framework.toy import toy_kernel

pytestmark = pytest.mark.vm
END_S = 60
AFTER = "The requested operation is not supported after starting the microVM."
START = {"action_type": "InstanceStart"}


@pytest.fixture(autouse=True)
def qemu_is_here():
    answer = probe.qemu()
    if not answer:
        pytest.skip(answer.why)


@pytest.fixture
def boot(tmp_path):
    """Starts a stand-in with a toy guest that runs; what it is given is put before it starts."""
    opened = []

    def start(behaviour="idle", *words, play=None, **puts):
        context = stand_in(*words, play=play)
        made = context.__enter__()
        opened.append(context)
        kernel = made.directory / "kernel"
        kernel.write_bytes(toy_kernel(behaviour))
        made.configure(kernel)
        for path, body in puts.items():
            made.put(f"/{path.replace('__', '/').replace('_', '-')}", **body)
        made.act("InstanceStart")
        return made

    yield start
    for context in reversed(opened):
        context.__exit__(None, None, None)


def test_a_guest_boots_and_its_console_is_standard_output(boot):
    made = boot()
    made.wait_for_console("hello")
    assert made.ask("GET", "/")[1]["state"] == "Running"


def test_a_guest_that_resets_ends_the_process_with_0(boot):
    made = boot("reset")
    assert made.process.wait(END_S) == 0
    assert "Vmm is stopping." in made.console.read_text()
    assert "Firecracker exiting successfully. exit_code=0" in made.console.read_text()


def test_a_guest_that_powers_itself_off_leaves_the_process_there(boot):
    made = boot("off")
    made.wait_for_console("bye")
    time.sleep(1)
    assert made.process.poll() is None
    assert made.ask("GET", "/")[1]["state"] == "Running"
    for state, shown in (("Paused", "Paused"), ("Resumed", "Running")):
        assert made.ask("PATCH", "/vm", {"state": state})[0] == 204
        assert made.ask("GET", "/")[1]["state"] == shown
    assert made.process.poll() is None


def test_killing_the_process_kills_its_guest(boot):
    made = boot()
    (child,) = made.children()
    made.process.send_signal(signal.SIGKILL)
    assert made.process.wait(END_S) == -signal.SIGKILL
    wait_gone(child)


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, -signal.SIGTERM), (signal.SIGHUP, 156)]
)
def test_signals_end_guest_and_process(boot, number, status):
    made = boot()
    (child,) = made.children()
    made.process.send_signal(number)
    assert made.process.wait(END_S) == status
    wait_gone(child)


def test_an_engine_that_dies_takes_the_process_with_it_as_a_crash(boot):
    made = boot()
    (child,) = made.children()
    os.kill(child, signal.SIGKILL)
    assert made.process.wait(END_S) == -signal.SIGABRT
    assert "panicked" in made.console.read_text()


def test_it_can_die_at_a_given_time_after_the_start(boot):
    began = time.monotonic()  # before the start, which a test that is held up learns of late
    made = boot(play=Play(die_after_start_ms=5000))
    (child,) = made.children()
    assert made.process.wait(END_S) == -signal.SIGKILL
    assert 5 <= time.monotonic() - began < END_S
    wait_gone(child)


def test_a_paused_guest_says_nothing_and_goes_on_when_resumed(boot):
    made = boot("chatter")
    made.wait_for_console("la la la")
    assert made.ask("PATCH", "/vm", {"state": "Paused"})[0] == 204
    size = made.console.stat().st_size
    time.sleep(0.5)
    quiet = made.console.read_bytes()[size:]
    assert b"la la" not in quiet
    assert made.ask("GET", "/")[1]["state"] == "Paused"
    assert made.ask("PATCH", "/vm", {"state": "Resumed"})[0] == 204
    size = made.console.stat().st_size
    deadline = time.monotonic() + END_S
    while made.console.stat().st_size < size + 1000:
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/machine-config", {"vcpu_count": 1, "mem_size_mib": 128}),
        ("/boot-source", {"kernel_image_path": "/bin/sh"}),
        ("/drives/a", {"drive_id": "a", "is_root_device": False, "path_on_host": "/bin/sh", "is_read_only": True}),
        ("/network-interfaces/e", {"iface_id": "e", "host_dev_name": "t"}),
        ("/vsock", {"guest_cid": 3, "uds_path": "/v"}),
        ("/entropy", {}),
        ("/balloon", {"amount_mib": 0, "deflate_on_oom": True}),
        ("/logger", {"level": "Info"}),
        ("/metrics", {"metrics_path": "/m"}),
        ("/mmds/config", {"network_interfaces": ["e"], "version": "V2"}),
        ("/cpu-config", {}),
        ("/actions", START),
        ("/snapshot/load", {"snapshot_path": "s", "mem_backend": {"backend_path": "m", "backend_type": "File"}}),
    ],
)  # fmt: skip
def test_what_is_for_before_boot_is_refused_after_it(shared, path, body):
    assert shared.fault("PUT", path, body) == AFTER


@pytest.fixture(scope="module")
def shared():
    """A running guest of the module's own, without devices."""
    with stand_in() as made:
        kernel = made.directory / "kernel"
        kernel.write_bytes(toy_kernel("idle"))
        made.configure(kernel)
        made.act("InstanceStart")
        yield made


MISSING = "Failed perform action on device: Device not found"


@pytest.mark.parametrize(
    ("method", "path", "body", "words"),
    [
        ("PATCH", "/machine-config", {"vcpu_count": 2}, AFTER),
        ("PATCH", "/drives/a", {"drive_id": "a", "path_on_host": "/a"}, f"Drive config error: Unable to patch the block device: {MISSING} Please verify the request arguments."),
        ("PATCH", "/network-interfaces/e", {"iface_id": "e"}, f"Network config error: Unable to update the net device: {MISSING}"),
        ("PATCH", "/balloon", {"amount_mib": 1}, f"Balloon update error: {MISSING}"),
        ("GET", "/balloon", None, f"Internal VMM error: {MISSING}"),
        ("GET", "/balloon/statistics", None, f"Internal VMM error: {MISSING}"),
        ("GET", "/mmds", None, "MMDS error: The MMDS data store is not initialized."),
        ("PUT", "/snapshot/create", {"snapshot_path": "/s", "mem_file_path": "/m"}, "Create snapshot error: Cannot save the microVM state: Operation not allowed: save/restore unavailable while running"),
    ],
)  # fmt: skip
def test_what_is_not_there_or_not_now_is_refused(shared, method, path, body, words):
    assert shared.fault(method, path, body) == words


def test_newer_releases_would_plug_devices_in_if_there_were_pci(boot):
    made = boot(play=Play(version="1.16.1"))
    drive = {
        "drive_id": "a",
        "is_root_device": False,
        "path_on_host": "/bin/sh",
        "is_read_only": True,
    }
    assert made.fault("PUT", "/drives/a", drive) == "PCI is not enabled"


def test_a_serial_path_gets_the_console_without_truncating_or_appending(boot, tmp_path):
    path = tmp_path / "serial"
    path.write_bytes(b"x" * 20)
    made = boot(play=Play(version="1.14.0"), serial={"serial_out_path": str(path)})
    deadline = time.monotonic() + END_S
    while b"hello\n" not in path.read_bytes():  # it comes byte by byte
        assert time.monotonic() < deadline
        time.sleep(0.02)
    assert path.read_bytes() == b"hello\n" + b"x" * 14
    assert "hello" not in made.console.read_text()


def test_a_balloon_without_a_driver_in_the_guest_cannot_be_changed(boot):
    balloon = {"amount_mib": 8, "deflate_on_oom": True, "stats_polling_interval_s": 1}
    made = boot(balloon=balloon)
    assert made.ask("GET", "/balloon") == (200, balloon)
    assert (
        made.fault("PATCH", "/balloon", {"amount_mib": 9})
        == "Balloon update error: Balloon: Device not activated yet."
    )
    assert made.ask("GET", "/balloon/statistics")[1]["target_mib"] == 8
    assert made.fault("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 0}) == (
        "Balloon update error: Balloon: Statistics cannot be enabled/disabled after activation."
    )
    assert made.ask("PATCH", "/balloon/statistics", {"stats_polling_interval_s": 5})[0] == 204


def test_a_drive_that_has_grown_is_looked_at_again_and_its_limits_can_change(boot, tmp_path):
    disk, other = tmp_path / "disk", tmp_path / "other"
    for path in (disk, other):
        path.write_bytes(bytes(1 << 20))
    bucket = {"size": 1000, "refill_time": 1000}
    made = boot(
        drives__data={
            "drive_id": "data",
            "is_root_device": False,
            "path_on_host": str(disk),
            "rate_limiter": {"ops": bucket},
        }
    )
    os.truncate(disk, 2 << 20)
    assert made.ask("PATCH", "/drives/data", {"drive_id": "data", "path_on_host": str(disk)}) == (
        204,
        None,
    )
    assert made.ask(
        "PATCH", "/drives/data", {"drive_id": "data", "rate_limiter": {"bandwidth": bucket}}
    ) == (204, None)
    (drive,) = made.ask("GET", "/vm/config")[1]["drives"]
    assert set(drive["rate_limiter"]) == {"ops", "bandwidth"}
    assert disk.stat().st_size == 2 << 20
    what = "Drive config error: Unable to patch the block device: Block: Virtio backend error: Error manipulating the backing file:"
    assert (
        made.fault("PATCH", "/drives/data", {"drive_id": "data", "path_on_host": "/no"})
        == f"{what} No such file or directory (os error 2) /no Please verify the request arguments."
    )
    assert "the same file with another size works" in made.fault(
        "PATCH", "/drives/data", {"drive_id": "data", "path_on_host": str(other)}
    )


def test_a_serial_path_that_cannot_be_opened_is_refused_at_the_start():
    with stand_in(play=Play(version="1.14.0")) as made:
        made.configure("/bin/sh")
        made.put("/serial", serial_out_path="/no/serial")
        words = "Start microvm error: Failed to create device manager: Error with EventFd: No such file or directory (os error 2)"
        assert made.fault("PUT", "/actions", START) == words


def test_a_nul_in_the_command_line_makes_it_panic_at_the_start():
    with stand_in() as made:
        made.configure("/bin/sh", boot_args="a\0b")
        with pytest.raises(ConnectionError):
            made.ask("PUT", "/actions", START)
        assert made.process.wait(END_S) == -signal.SIGABRT
        assert (
            "Cannot create cstring from cmdline string: NullTerminator" in made.console.read_text()
        )


@pytest.mark.parametrize("bits", [32, 64])
def test_a_kernel_of_either_width_boots(bits):
    with stand_in() as made:
        kernel = made.directory / "kernel"
        kernel.write_bytes(toy_kernel("reset", bits=bits))
        made.configure(kernel)
        made.act("InstanceStart")
        assert made.process.wait(END_S) == 0


def test_a_guest_that_cannot_be_started_leaves_the_process_waiting_for_a_better_one(tmp_path):
    with stand_in() as made:
        kernel = tmp_path / "kernel"
        kernel.write_bytes(b"\x7fELF" + bytes(200))
        made.configure(kernel)
        words = made.fault("PUT", "/actions", START)
        assert words.startswith("Start microvm error: Internal error while starting microVM: ")
        assert made.children() == []
        kernel.write_bytes(toy_kernel("idle"))
        made.act("InstanceStart")
        made.wait_for_console("hello")


def test_metrics_are_written_on_demand_and_at_the_end(boot, tmp_path):
    path = tmp_path / "metrics"
    made = boot("idle", "--metrics-path", str(path))
    made.act("FlushMetrics")
    assert json.loads(path.read_text())["utc_timestamp_ms"] > 0
    made.process.send_signal(signal.SIGHUP)
    made.process.wait(END_S)
    assert len(path.read_text().splitlines()) == 2


def config(tmp_path, behaviour):
    kernel = tmp_path / "kernel"
    kernel.write_bytes(toy_kernel(behaviour))
    path = tmp_path / "config.json"
    path.write_text(
        json.dumps(
            {
                "boot-source": {"kernel_image_path": str(kernel)},
                "drives": [],
                "machine-config": {"vcpu_count": 1, "mem_size_mib": 128},
            }
        )
    )
    return path


def test_a_configuration_file_boots_with_the_api(tmp_path):
    with stand_in("--config-file", str(config(tmp_path, "idle"))) as made:
        made.wait_for_console("hello")
        deadline = time.monotonic() + END_S  # the guest may be faster than who let it run
        while made.ask("GET", "/")[1]["state"] != "Running":
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert made.fault("PUT", "/entropy", {}) == AFTER


def test_a_configuration_file_boots_without_the_api(tmp_path):
    program = make_firecracker(tmp_path)
    done = subprocess.run(
        [program, "--no-api", "--config-file", config(tmp_path, "reset"), "--api-sock", tmp_path / "s"],
        env={}, capture_output=True, text=True, timeout=END_S, check=False, stdin=subprocess.DEVNULL,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    assert "again" in done.stdout
    assert not (tmp_path / "s").exists()


def test_a_bad_configuration_file_ends_the_process(tmp_path):
    program = make_firecracker(tmp_path)
    path = tmp_path / "config.json"
    for text, why in (
        ('{"drives": []}', "Invalid JSON: missing field `boot-source` at line 1 column 14"),
        ('{"drives": [], "boot-source": {"kernel_image_path": "/no"}}', "Boot source error: The kernel file cannot be opened: No such file or directory (os error 2)"),
    ):  # fmt: skip
        path.write_text(text)
        done = subprocess.run(
            [program, "--no-api", "--config-file", path], env={}, capture_output=True, text=True, timeout=END_S, check=False
        )  # fmt: skip
        assert done.returncode == 1
        assert (
            f"Failed to build MicroVM from Json: Configuration for VMM from one single json failed: {why}"
            in done.stdout
        )


def test_an_ordinary_user_can_run_a_guest(tmp_path):
    wrapper = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    if (
        os.geteuid() != 0
        or subprocess.run([*wrapper, "test", "-r", ROOT / "tests"], check=False).returncode
    ):
        pytest.skip("needs root, and a checkout that others may read")
    with stand_in(play=Play(binds=False)) as made:  # for its directory, which others may then use
        made.close()
        made.directory.chmod(0o777)
        with stand_in(directory=made.directory, wrapper=wrapper) as ordinary:
            kernel = made.directory / "kernel"
            kernel.write_bytes(toy_kernel("reset"))
            ordinary.configure(kernel)
            ordinary.act("InstanceStart")
            assert ordinary.process.wait(END_S) == 0
            assert os.stat(ordinary.socket).st_uid == 65534


JAIL = """set -eu
root=$1; shift
while [ "$1" != -- ]; do
    if [ -d "$1" ]; then mkdir -p "$root$1"; else mkdir -p "$root${1%/*}"; touch "$root$1"; fi
    mount --bind "$1" "$root$1"
    shift
done
shift
exec chroot "$root" "$@"
"""


def test_it_runs_where_only_what_it_needs_is_visible(tmp_path):
    """As in a jail: no /proc, no /tmp, nothing of the host but what is bound."""
    if os.geteuid() != 0:
        pytest.skip("needs root to bind")
    system = [
        path for path in ("/usr", "/bin", "/lib", "/lib64", "/dev/urandom") if os.path.exists(path)
    ]
    with stand_in(play=Play(binds=False)) as made:  # for its directory, which the jail shares
        made.close()
        (made.directory / "kernel").write_bytes(toy_kernel("idle"))
        seen = dict.fromkeys([*system, *map(str, needed_paths()), str(made.directory)])
        wrapper = (
            "unshare",
            "--mount",
            "--propagation=private",
            "sh",
            "-c",
            JAIL,
            "sh",
            str(tmp_path),
            *seen,
            "--",
        )
        with stand_in(directory=made.directory, wrapper=wrapper) as jailed:
            jailed.configure(made.directory / "kernel")
            jailed.put("/entropy")
            jailed.put("/vsock", guest_cid=3, uds_path=str(jailed.vsock))
            jailed.act("InstanceStart")
            jailed.wait_for_console("hello")
            seen_inside = {
                entry.name for entry in Path(f"/proc/{jailed.process.pid}/root").iterdir()
            }
            assert "proc" not in seen_inside
            assert "etc" not in seen_inside
