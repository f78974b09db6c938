"""A daemon whose database is damaged finds its VMs by their directories, and those that run by their processes."""

import pytest

pytestmark = pytest.mark.timeout(300)
BOOT_ID = ("cat", "/proc/sys/kernel/random/boot_id")


def test_a_vm_that_runs_is_adopted_though_the_database_is_damaged_and_its_user_is_told_once(banger):
    banger.create("one")
    before = banger.vm("one")
    boot = banger.run("vm", "exec", "one", "--", *BOOT_ID).stdout
    banger.kill_daemon()
    for path in banger.state.glob("banger.db*"):
        path.write_bytes(b"this is no database" * 1000)
    first = banger.run("vm", "list", "--format", "name")
    assert first.stdout == "one\n"
    assert "warning: the database was damaged and is kept as " in first.stderr
    assert "kept as" not in banger.run("vm", "list").stderr
    assert "kept as" in banger.run("daemon", "status").stderr
    after = banger.vm("one")
    assert (after["state"], after["id"]) == ("running", before["id"])
    assert after["status"]["pid"] == before["status"]["pid"]
    assert after["status"]["forwards"] == before["status"]["forwards"]
    assert banger.run("vm", "exec", "one", "--", *BOOT_ID).stdout == boot
    assert banger.run("vm", "ssh", "one", "--", "echo", "in").stdout == "in\n"
    banger.run("vm", "restart", "one")
    assert banger.run("vm", "exec", "one", "--", *BOOT_ID).stdout != boot
