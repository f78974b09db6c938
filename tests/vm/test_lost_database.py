"""A daemon whose database is gone finds its VMs by their directories, and those that run by their processes."""

import pytest

pytestmark = pytest.mark.timeout(300)


def test_a_vm_that_runs_is_adopted_though_the_database_is_gone(banger):
    banger.create("one")
    before = banger.vm("one")
    boot = banger.run("vm", "exec", "one", "--", "cat", "/proc/sys/kernel/random/boot_id").stdout
    banger.kill_daemon()
    for path in banger.state.glob("banger.db*"):
        path.rename(path.with_name(f"lost-{path.name}"))
    after = banger.vm("one")
    assert (after["state"], after["id"]) == ("running", before["id"])
    assert after["status"]["pid"] == before["status"]["pid"]
    assert after["status"]["forwards"] == before["status"]["forwards"]
    again = banger.run("vm", "exec", "one", "--", "cat", "/proc/sys/kernel/random/boot_id").stdout
    assert again == boot
    assert banger.run("vm", "ssh", "one", "--", "echo", "in").stdout == "in\n"
    banger.run("vm", "restart", "one")
