"""A state of an earlier release is taken over by this daemon, the whole of it; a state of a newer one is refused and left as it is."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from banger.client.sdk import Client
from banger.model.lease import Lease
from banger.model.spec import Forward, NetworkMode, VmSpec
from banger.model.state import OperationState, VmState
from banger.store.store import Store
from tests.framework import earlier


@pytest.fixture
def home(tmp_path):
    """A state directory, and a runtime directory with a short path."""
    runtime = Path(tempfile.mkdtemp(prefix="bgr-", dir="/tmp"))
    (tmp_path / "state").mkdir()
    yield tmp_path / "state", runtime
    shutil.rmtree(runtime)


def daemon(home, **options):
    state, runtime = home
    kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
    env = {
        **kept, "BANGER_STATE_DIR": str(state), "BANGER_RUNTIME_DIR": str(runtime), "BANGER_CONFIG": str(state / "none"),
        "BANGER_HELPER_STATE_DIR": str(state / "helper"),
    }  # fmt: skip
    return subprocess.Popen(
        [sys.executable, "-m", "banger.daemon.main", *options.pop("arguments", [])], env=env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options,
    )  # fmt: skip


def test_every_schema_has_rows_that_its_release_wrote():
    assert list(range(1, len(earlier.VERSIONS) + 1)) == earlier.VERSIONS
    for version in earlier.VERSIONS:
        assert "INSERT INTO vms" in earlier.rows(version)


@pytest.mark.parametrize("version", earlier.VERSIONS)
def test_the_store_reads_every_row_of_an_earlier_release(tmp_path, version):
    earlier.write(tmp_path / "banger.db", version)
    store = Store(tmp_path / "banger.db")
    assert store.kept_aside is None
    ran, rests = store.vms()
    assert (ran.name, ran.state, ran.forwards) == ("ran", VmState.RUNNING, (Forward(8080, 80),))
    assert ran.run.process.pid == 4194000
    assert rests.spec == VmSpec(
        vcpus=1, memory_mib=512, disk_bytes=1 << 30, work_bytes=1 << 30, vmm="qemu", network=NetworkMode.NONE, nat=False
    )  # fmt: skip
    assert not rests.spec.autostart
    assert store.leases()[0] == Lease("a" * 12, 0, "02:00:00:00:00:00", "10.0.0.16", 16, "10.0.0.1", "10.0.0.2")  # fmt: skip
    newest, oldest = store.operations()
    assert (newest.state, oldest.state) == (OperationState.RUNNING, OperationState.SUCCEEDED)
    assert oldest.stages[0].detail == "debian bookworm"
    assert [row.effect for row in store.ledger()] == ["network", "state"]
    store.update_vm(rests.but(name="renamed"))
    assert store.vms()[1].name == "renamed"
    store.close()


@pytest.mark.parametrize("version", earlier.VERSIONS)
def test_the_daemon_takes_an_earlier_state_over_and_tells_the_truth_about_it(home, version):
    state, runtime = home
    earlier.write(state / "banger.db", version)
    reader, writer = os.pipe()
    process = daemon(home, arguments=["--ready-fd", str(writer)], pass_fds=[writer])
    os.close(writer)
    try:
        assert os.read(reader, 1) == b"1", process.communicate()[1]
        with Client(runtime / "bangerd.sock", timeout_s=30) as client:
            ran, rests = client.vms()
            assert (ran.state, rests.state) == ("stopped", "stopped")
            assert ran.status.last_error.what == "the host was restarted while the VM ran"
            assert ran.status.last_error.hint == "banger vm start ran"
            assert [op.state for op in client.operations()] == ["failed", "succeeded"]
            findings = {(item.kind, item.sense, item.vm) for item in client.audit()}
            assert findings == {(k, "gone", v * 12) for k in ("disk", "image") for v in "ab"}
            assert client.delete_vm("rests").kind == "vm.delete"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    finally:
        os.close(reader)
        process.kill()
        process.communicate()
    assert earlier.dump(state / "banger.db")[0] == f"version {earlier.VERSIONS[-1]}"


@pytest.mark.parametrize("cut", [False, True], ids=["closed well", "with a log that was not written back"])  # fmt: skip
def test_a_newer_state_is_refused_by_the_daemon_and_nothing_of_it_is_lost(home, cut):
    state, _ = home
    path = state / "banger.db"
    earlier.write(path, earlier.VERSIONS[-1])
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA wal_autocheckpoint = 0")
    connection.execute("CREATE TABLE marvels (name TEXT) STRICT")
    connection.execute("INSERT INTO marvels VALUES ('x')")
    connection.execute("PRAGMA user_version = 9999")
    if cut:
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{path}.copy{suffix}")
        connection.close()
        for suffix in ("", "-wal"):
            os.replace(f"{path}.copy{suffix}", f"{path}{suffix}")
        shutil.copytree(state, state.with_name("twin"))
        before = earlier.dump(state.with_name("twin") / "banger.db")
    else:
        connection.close()
        before = earlier.dump(path)
    assert before[0] == "version 9999"
    process = daemon(home)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 4
    assert err.startswith(f"error: database {path} is of a newer banger\n")
    assert err.endswith("hint: use the newer banger, or another BANGER_STATE_DIR\n")
    assert earlier.dump(path) == before
    assert [p.name for p in state.iterdir() if "corrupt" in p.name] == []
