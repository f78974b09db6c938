"""VMs whose root disk is a dm-snapshot, through daemon and CLI: under Firecracker in its jail, and under QEMU. Runs where both are; see docs/explanation/test-host.md."""

import json
import os
import signal
import subprocess

import pytest

from banger.host import probe
from tests.framework.installation import Installation, wait_until

pytestmark = [pytest.mark.firecracker, pytest.mark.timeout(900)]
LONG = ("--timeout", "300")


@pytest.fixture
def installation(firecracker, tmp_path, image):
    for answer in (probe.kvm(), probe.root(), probe.device_mapper()):
        if not answer:
            pytest.skip(answer.why)
    small, where = tmp_path / "small.img", tmp_path / "small"
    where.mkdir()
    with small.open("wb") as file:
        file.truncate(1200 << 20)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", small], check=True)
    subprocess.run(["mount", "-o", "loop", small, where], check=True)
    try:
        made = Installation(
            where / "b",
            storage="dm-snapshot",
            firecracker_path=firecracker.firecracker,
            jailer_path=firecracker.jailer,
        )
        yield made
        left = made.close()
        assert not left, f"left behind: {left}"
        assert mappings() == set()
    finally:
        subprocess.run(["umount", where], check=True)


def mappings():
    done = subprocess.run(["dmsetup", "ls"], check=True, capture_output=True, text=True)
    return {line.split()[0] for line in done.stdout.splitlines() if "\t" in line}


def guest(banger, *words, **options):
    return banger.run("vm", "exec", "box", "--", *words, timeout=300, **options).stdout


def test_dm_a_vms_life_on_firecracker(installation):
    banger = installation
    done = banger.create("box", *LONG, "--work-size", "1G", timeout=400)
    print(done.stderr)
    assert "dm-snapshot" in done.stderr
    assert "jailed as uid" in done.stderr
    shown = banger.vm("box")
    assert (shown["status"]["vmm"], shown["status"]["storage"]) == ("firecracker", "dm-snapshot")
    name = f"banger-{shown['id']}"
    assert mappings() == {name}
    guest(banger, "sh", "-c", "echo kept > /etc/kept; sync")

    pid = banger.json("daemon", "status")["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not os.path.exists(f"/proc/{pid}"), 60)
    assert banger.vm("box")["status"]["pid"] == shown["status"]["pid"]
    assert mappings() == {name}
    assert guest(banger, "cat", "/etc/kept") == "kept\n"

    banger.run("vm", "stop", "box", timeout=120)
    assert mappings() == set()
    usage = {item["name"]: item for item in banger.json("df")["items"]}
    assert usage["box"]["storage"] == "dm-snapshot"
    banger.run("vm", "start", "box", *LONG, timeout=400)
    assert guest(banger, "cat", "/etc/kept") == "kept\n"

    pauses_while_the_disk_is_full(banger)

    banger.run("vm", "delete", "box", timeout=120)
    assert mappings() == set()


def pauses_while_the_disk_is_full(banger):
    filler = banger.state / "filler"
    free = os.statvfs(banger.state)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - (8 << 20))
    script = "yes $(cat /proc/uptime) | head -c 320M > /var/tmp/big; sync; sha256sum < /var/tmp/big"
    with banger.start("vm", "exec", "box", "--", "sh", "-c", script, stdout=subprocess.PIPE) as writing:  # fmt: skip
        wait_until(lambda: banger.vm("box")["state"] == "paused", 300)
        shown = banger.vm("box")
        assert "cannot grow" in shown["status"]["last_error"]["what"]
        health = json.loads(
            banger.run("vm", "health", "box", "--format", "json", check=False).stdout
        )
        assert not health["reachable"]
        assert "banger vm resume box" in health["detail"]
        store = next(banger.state.glob("vms/*/overlay.cow"))
        size_bytes = store.stat().st_size
        filler.unlink()
        wait_until(lambda: store.stat().st_size > size_bytes, 60, "the store did not grow again")
        banger.run("vm", "resume", "box")
        output, _ = writing.communicate(timeout=300)
        assert writing.returncode == 0, output
    digest = output.decode().splitlines()[-1]
    guest(banger, "sh", "-c", "echo 3 > /proc/sys/vm/drop_caches")
    assert guest(banger, "sh", "-c", "sha256sum < /var/tmp/big").strip() == digest.strip()


def test_dm_a_vm_on_qemu_confined(installation):
    banger = installation
    done = banger.create("box", "--vmm", "qemu", *LONG, "--work-size", "1G", timeout=400)
    print(done.stderr)
    shown = banger.vm("box")
    assert (shown["status"]["vmm"], shown["status"]["storage"]) == ("qemu", "dm-snapshot")
    assert guest(banger, "sh", "-c", "echo x > /etc/x; sync; cat /etc/x") == "x\n"
    assert len(mappings()) == 1
    banger.run("vm", "delete", "box", timeout=120)
    assert mappings() == set()
