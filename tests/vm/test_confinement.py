"""VMMs of real guests are confined; where the host or the user does not want it so, the user is told."""

import asyncio
import os
import sys
from pathlib import Path

import pytest

from banger.host import confine
from tests.framework import jail


@pytest.fixture(scope="module")
def namespaces_confine():
    answer = asyncio.run(confine.probe_confinement())
    if not answer:
        pytest.skip(f"{answer.why}; {answer.hint}")


@pytest.fixture
def pid(vm):
    return vm.vm("box")["status"]["pid"]


def stage(banger, name):
    (create,) = [op for op in banger.json("op", "list") if op["kind"] == "vm.create"]
    return next(stage["detail"] for stage in create["stages"] if stage["name"] == name)


def test_a_vm_tells_that_it_is_confined(vm, namespaces_confine):
    assert vm.vm("box")["status"]["warning"] == ""
    assert stage(vm, "vmm").endswith("confined")


def test_its_vmm_sees_its_own_files_and_nothing_else_of_the_state_directory(
    vm, pid, namespaces_confine
):
    root = Path(f"/proc/{pid}/root")
    inside = root / str(vm.state).lstrip("/")
    assert sorted(os.listdir(inside)) == ["images", "vms"]
    assert os.listdir(inside / "vms") == [vm.vm("box")["id"]]
    (image,) = (inside / "images").iterdir()
    assert sorted(path.name for path in image.iterdir()) == [
        "initramfs.img",
        "rootfs.img",
        "vmlinux",
    ]
    assert not (root / "etc/passwd").exists()
    assert not (root / str(vm.runtime).lstrip("/")).exists()
    assert not (root / "proc").exists()


def test_its_vmm_is_alone_in_an_empty_network(pid, namespaces_confine):
    assert os.readlink(f"/proc/{pid}/ns/net") != os.readlink("/proc/self/ns/net")
    links = Path(f"/proc/{pid}/net/dev").read_text().splitlines()[2:]
    assert [line.split(":")[0].strip() for line in links] == ["lo"]


def test_its_vmm_has_no_capability_and_can_gain_none(pid, namespaces_confine):
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {key: value.strip() for key, _, value in (line.partition(":") for line in lines)}
    assert {int(status[f"Cap{kind}"], 16) for kind in ("Inh", "Prm", "Eff", "Bnd", "Amb")} == {0}
    assert status["NoNewPrivs"] == "1"
    assert status["NSpid"].split() == [str(pid), "1"]


def test_a_confined_vm_has_a_network_and_stops_and_starts(vm, namespaces_confine):
    assert vm.vm("box")["status"]["network"] == "user"
    assert vm.run("vm", "ssh", "box", "--", "echo", "through").stdout == "through\n"
    vm.run("vm", "restart", "box")
    assert vm.vm("box")["ready"]


def test_a_user_who_switches_it_off_is_warned(banger):
    banger.env["BANGER_CONFINE"] = "off"
    banger.create("one")
    assert "unconfined" in banger.vm("one")["status"]["warning"]
    assert stage(banger, "vmm").endswith("not confined")
    pid = banger.vm("one")["status"]["pid"]
    assert os.readlink(f"/proc/{pid}/ns/mnt") == os.readlink("/proc/self/ns/mnt")


def test_on_a_host_without_namespaces_a_vm_runs_under_landlock_and_is_warned(banger):
    answer = confine.probe_landlock()
    if not answer:
        pytest.skip(answer.why)
    start = [sys.executable, "-m", "banger.cli.main", "daemon", "start"]
    jail.on_a_host_without(["namespaces"], start, env=banger.env)
    banger.create("one")
    status = banger.vm("one")["status"]
    assert status["network"] == "qemu-user"
    assert "QEMU's own user network" in status["warning"]
    assert "Landlock and system call filters alone" in status["warning"]
    assert stage(banger, "vmm").endswith("Landlock only")
    assert banger.run("vm", "ssh", "one", "--", "echo", "through").stdout == "through\n"
    banger.run("vm", "stop", "one")
    assert banger.vm("one")["state"] == "stopped"


def test_on_a_host_with_neither_nothing_is_started(banger):
    start = [sys.executable, "-m", "banger.cli.main", "daemon", "start"]
    jail.on_a_host_without(["namespaces", "landlock"], start, env=banger.env)
    done = banger.create("one", check=False)
    assert done.returncode == 5
    assert "cannot be confined on this host" in done.stderr
    assert 'confine = "off"' in done.stderr
