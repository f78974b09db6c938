"""``banger audit`` on a real guest: clean, then with residue of every kind that can be planted, then clean again; the VM runs on all the time."""

import os
import sqlite3
import subprocess
import sys
import time

import pytest

from banger.model.ids import new_id
from tests.framework.installation import Installation, wait_until


@pytest.fixture
def banger(tmp_path, image):
    installation = Installation(tmp_path, reconcile_s=1)
    yield installation
    left = installation.close()
    assert not left, f"left behind: {left}"


def plant(banger):
    """Residue of a VM that nobody knows, and of work that was cut short; the process of it."""
    stranger = new_id()
    directory = banger.state / "vms" / stranger
    directory.mkdir(mode=0o700)
    (directory / "console.log").write_text("banger: booted\n")
    (banger.runtime / "vms" / stranger).mkdir(mode=0o700)
    with (banger.state / "known_hosts").open("a") as file:
        file.write(f"{stranger}.banger,gone.banger ssh-ed25519 AAAA\n")
    with sqlite3.connect(banger.state / "banger.db") as database:
        database.execute("INSERT INTO ledger VALUES (?, 'vmm', 1, 'then')", (stranger,))
    database.close()
    rest = banger.state / ".banger-new-rest"
    rest.write_text("half")
    os.utime(rest, (time.time() - 3600,) * 2)
    console = f"file,id=console,path={directory / 'console.log'},append=on"
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)", console])


def test_residue_is_told_within_a_moment_and_mended_when_asked_to_while_the_vm_runs_on(banger):
    banger.create("one", "--autostart")
    before = banger.vm("one")
    assert before["spec"]["autostart"]
    done = banger.run("audit")
    assert (done.stdout, done.stderr) == ("", "record and host agree\n")
    process = plant(banger)
    try:
        items = banger.json("audit", check=False)
        assert sorted(item["kind"] for item in items) == [
            "directory", "host-key", "ledger", "sockets", "temporary", "vmm",
        ]  # fmt: skip
        assert banger.run("audit", check=False).returncode == 1
        log = banger.state / "bangerd.log"
        wait_until(lambda: "left half-written" in log.read_text(), 60)
        fixed = banger.run("audit", "--fix").stdout.splitlines()
        assert len(fixed) == 1 + len(items)
        assert process.wait(60) == -9
    finally:
        process.kill()
        process.wait()
    assert banger.run("audit").stderr == "record and host agree\n"
    after = banger.vm("one")
    assert (after["state"], after["status"]["pid"]) == ("running", before["status"]["pid"])
    assert banger.run("vm", "exec", "one", "--", "echo", "here").stdout == "here\n"
    banger.run("vm", "stop", "one", "--force")
    assert banger.run("audit").stderr == "record and host agree\n"
