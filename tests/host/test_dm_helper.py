"""Root disks of an ordinary user as dm-snapshots by banger-helper, on a kernel that has a device mapper: a VM's whole life, a helper that is really
killed at every step, and the service under systemd. See docs/explanation/test-host.md.
"""

import asyncio
import contextlib
import grp
import json
import os
import pwd
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from banger.host import probe
from banger.model.errors import BangerError
from banger.storage.snapshots.client import HelperSnapshots
from banger.storage.snapshots.port import SnapshotKey
from tests.framework.as_user import as_user
from tests.framework.helper_host import USER, asked
from tests.framework.helper_process import HelperProcess
from tests.framework.installation import ROOT, wait_until
from tests.framework.inventory import inventory
from tests.framework.ordinary_user import OrdinaryUser
from tests.framework.snapshot_host import none_left
from tests.host.test_helper_snapshots import IMAGE_BYTES, POINTS, attach, content, home  # noqa: F401  a fixture

pytestmark = [pytest.mark.device_mapper, pytest.mark.timeout(900)]
LONG = ("--timeout", "400")
KEY = SnapshotKey("1" * 12, "2" * 12)


@pytest.fixture(autouse=True)
def device_mapper():
    if not (answer := probe.device_mapper()):
        pytest.skip(answer.why)


def mappings():
    done = subprocess.run(["dmsetup", "ls"], check=True, capture_output=True, text=True)
    return {line.split()[0] for line in done.stdout.splitlines() if "\t" in line}


def rows(directory):
    return json.loads((directory / "state" / "snapshots.json").read_text())["rows"]


# A helper that is killed


async def whole_life(client, directory):
    """Of a disk that is larger than its image."""
    await client.open(KEY, directory / "image", directory / "store0", 2 * IMAGE_BYTES)
    await client.close(KEY)


@pytest.mark.parametrize("where", POINTS)
async def test_what_a_killed_helper_left_the_next_one_puts_right(short_dir, home, where):  # noqa: F811
    helper, directory = HelperProcess(short_dir), home[0]
    client = HelperSnapshots(helper.socket)
    await asyncio.to_thread(helper.start, f"snapshot.{where}=kill")
    with pytest.raises(BangerError):
        await whole_life(client, directory)
    assert await asyncio.to_thread(helper.killed_by) == signal.SIGKILL
    with helper:
        whole = where in {"attach.done", "detach.taken"}
        assert mappings() == ({"banger-s1", "banger-s1-base"} if whole else set())
        assert len(rows(short_dir)) == (1 if whole else 0)
        await whole_life(client, directory)
        assert mappings() == set()
        assert rows(short_dir) == []
    assert none_left(directory / "image", directory / "store0")


# A VM


@pytest.fixture
def user(image, short_dir):
    for answer in (probe.kvm(), probe.root()):
        if not answer:
            pytest.skip(answer.why)
    before, kvm = inventory(), Path("/dev/kvm")
    kept, group = kvm.stat().st_mode & 0o777, grp.getgrnam("users")
    with OrdinaryUser([group.gr_gid, kvm.stat().st_gid]) as user, HelperProcess(short_dir, group.gr_name) as helper:  # fmt: skip
        kvm.chmod(0o660)
        user.helper = helper
        user.env |= {"BANGER_HELPER_SOCKET": str(helper.socket), "BANGER_STORAGE": "dm-snapshot"}
        user.equip(image["id"])
        yield user
        user.banger("vm", "delete", "--all", check=False)
        user.banger("daemon", "stop", check=False)
        kvm.chmod(kept)
    wait_until(lambda: not inventory() - before, 60, "something was left")


def shown(user):
    return json.loads(user.banger("vm", "show", "box", "--format", "json").stdout)


def test_a_users_vm_has_a_dm_snapshot_by_the_helper_through_its_whole_life(user):
    size = ("--vcpus", "1", "--memory", "512M", "--work-size", "1G", "--network", "none")
    made = user.banger("vm", "create", "--name", "box", "--vmm", "qemu", *size, *LONG, timeout=600)
    assert "dm-snapshot" in made.stderr
    assert "configured, through banger-helper" in made.stderr
    assert "confined" in made.stderr
    vm = shown(user)
    assert (vm["status"]["vmm"], vm["status"]["storage"]) == ("qemu", "dm-snapshot")
    devices = {name for name in mappings() if not name.endswith("-base")}
    assert devices == {"banger-s1"}
    user.banger("vm", "exec", "box", "--", "sh", "-c", "echo kept > /etc/kept; sync", timeout=300)

    pid = json.loads(user.banger("daemon", "status", "--format", "json").stdout)["pid"]
    os.kill(pid, signal.SIGKILL)
    user.helper.kill()
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 60)
    assert "banger-s1" in mappings()
    user.helper.start()
    assert shown(user)["status"]["pid"] == vm["status"]["pid"]  # adopted
    assert user.banger("vm", "exec", "box", "--", "cat", "/etc/kept", timeout=300).stdout == "kept\n"  # fmt: skip

    user.banger("vm", "stop", "box", timeout=200)
    assert mappings() == set()
    user.banger("image", "promote", "box", "--name", "mine", timeout=400)
    assert mappings() == set()
    promoted = json.loads(user.banger("image", "show", "mine", "--format", "json").stdout)
    rootfs = next(
        Path(user.account.pw_dir).glob(f".local/state/banger/images/{promoted['id']}/rootfs.img")
    )
    found = subprocess.run(["debugfs", "-R", "cat /etc/kept", rootfs], check=True, capture_output=True, text=True)  # fmt: skip
    assert found.stdout == "kept\n"
    store = next(Path(user.account.pw_dir).glob(".local/state/banger/vms/*/overlay.cow"))
    assert store.stat().st_size < 256 << 20  # what was set aside and not used was given back
    user.banger("vm", "start", "box", *LONG, timeout=600)
    assert user.banger("vm", "exec", "box", "--", "cat", "/etc/kept", timeout=300).stdout == "kept\n"  # fmt: skip

    pid = json.loads(user.banger("daemon", "status", "--format", "json").stdout)["pid"]
    os.kill(
        pid, signal.SIGKILL
    )  # and the VMM with it: the next daemon finds a device that nobody uses
    os.kill(shown_pid(user, vm["id"]), signal.SIGKILL)
    wait_until(lambda: shown(user)["state"] in {"stopped", "failed"}, 60)
    wait_until(lambda: mappings() == set(), 60)
    user.banger("vm", "delete", "box", timeout=200)
    assert rows(user.helper.directory) == []


@pytest.mark.firecracker
def test_a_users_firecracker_has_its_root_disk_on_one(user, firecracker):
    """Confined by banger, which lets it open that device of all."""
    user.env["BANGER_FIRECRACKER_PATH"] = str(firecracker.firecracker)
    size = ("--memory", "512M", "--work-size", "1G", "--network", "none")
    made = user.banger("vm", "create", "--name", "box", "--vmm", "firecracker", *size, *LONG, timeout=600)  # fmt: skip
    assert "firecracker, kvm, confined" in made.stderr
    assert shown(user)["status"]["storage"] == "dm-snapshot"
    assert "banger-s1" in mappings()
    done = user.banger("vm", "exec", "box", "--", "sh", "-c", "echo kept > /etc/kept; sync; cat /etc/kept", timeout=300)  # fmt: skip
    assert done.stdout == "kept\n"
    user.banger("vm", "delete", "box", timeout=200)
    assert mappings() == set()
    assert rows(user.helper.directory) == []


def shown_pid(user, vm_id):
    """Of the VMM, by its name."""
    for pid in user.processes():
        with contextlib.suppress(OSError):
            words = Path(f"/proc/{pid}/cmdline").read_bytes()
            if b"qemu-system" in words and vm_id.encode() in words:
                return pid
    raise AssertionError("no VMM runs")


# systemd


@pytest.fixture
def installed(monkeypatch):
    """``banger setup helper --storage`` on a test host, which has nothing to lose."""
    if "BANGER_TEST_HOST" not in os.environ or not Path("/run/systemd/system").is_dir():
        pytest.skip("only on a test host with systemd")
    program = Path("/usr/local/bin/banger-helper")
    program.write_text(f'#!/bin/sh\nPYTHONPATH={ROOT}/src exec {sys.executable} -m banger.helper.main "$@"\n')  # fmt: skip
    program.chmod(0o755)

    def setup(*words):
        argv = [sys.executable, "-m", "banger.cli.main", "setup", "helper", *words]
        env = {**os.environ, "PYTHONPATH": f"{ROOT}/src"}
        return subprocess.run(argv, env=env, check=True, capture_output=True, text=True)

    setup("--storage", "--user", pwd.getpwuid(0).pw_name)
    yield setup
    setup("--remove")
    subprocess.run(["systemctl", "reset-failed", "banger-helper.service"], check=False)
    subprocess.run(["groupdel", "banger"], check=True)
    program.unlink()
    shutil.rmtree("/var/lib/banger-helper", ignore_errors=True)


def test_under_systemd_it_makes_devices_if_it_was_set_up_for_that(installed, home):  # noqa: F811
    path, group = "/run/banger-helper/helper.sock", grp.getgrnam("banger").gr_gid

    def member(work, *arguments):
        return as_user(USER, work, *arguments, groups=[group])

    reply = member(attach, path, home[USER])
    assert reply["ok"], reply
    found = reply["result"]
    assert member(content, found["device"], b"q" * 4096)[:4096] == b"q" * 4096
    subprocess.run(["systemctl", "restart", "banger-helper.service"], check=True)
    (kept,) = member(lambda: asked(path, "snapshot.list"))["result"]["snapshots"]
    assert kept["device"] == found["device"]
    assert member(lambda: asked(path, "snapshot.detach", slot=found["slot"]))["ok"]
    assert mappings() == set()

    installed("--no-storage")
    reply = member(lambda: asked(path, "snapshot.list"))
    assert reply["result"]["why"]
    reply = member(attach, path, home[USER])
    assert reply["error"]["code"] == "host-lacks"
    assert member(lambda: asked(path, "hello"))["ok"]
