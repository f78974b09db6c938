"""The real Firecracker of an ordinary user who may open /dev/kvm: confined by banger alone, on banger's own network."""

import json
import os
from pathlib import Path

import pytest

from banger.host import probe
from tests.framework.ordinary_user import OrdinaryUser, tun_mode

pytestmark = [pytest.mark.firecracker, pytest.mark.timeout(900)]
KVM = Path("/dev/kvm")


@pytest.fixture(scope="module")
def user(firecracker, image):
    for answer in (probe.kvm(), probe.root()):
        if not answer:
            pytest.skip(answer.why)
    kept = KVM.stat().st_mode & 0o777
    with OrdinaryUser([KVM.stat().st_gid]) as user, tun_mode(0o666):
        KVM.chmod(0o660)
        user.env["BANGER_FIRECRACKER_PATH"] = str(firecracker.firecracker)
        user.equip(image["id"])
        yield user
        user.banger("vm", "delete", "--all")
        user.banger("daemon", "stop")
        KVM.chmod(kept)
        assert user.processes() == []


def test_a_user_who_may_open_kvm_has_a_confined_firecracker(user):
    size = ("--memory", "512M", "--work-size", "1G", "--timeout", "300")
    made = user.banger("vm", "create", "--name", "box", *size, timeout=600)
    assert "firecracker, kvm, confined" in made.stderr
    assert "warning:" not in made.stderr
    shown = json.loads(user.banger("vm", "show", "box", "--format", "json").stdout)
    assert (shown["status"]["vmm"], shown["status"]["network"]) == ("firecracker", "user")

    pid = shown["status"]["pid"]
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    status = {key: value.split() for key, _, value in (line.partition(":") for line in lines)}
    assert set(status["Uid"]) == {str(user.account.pw_uid)}
    assert (status["CapEff"], status["CapBnd"], status["NoNewPrivs"]) == (["0" * 16], ["0" * 16], ["1"])  # fmt: skip
    assert status["NSpid"][-1] == "1"
    for task in Path(f"/proc/{pid}/task").iterdir():
        assert "Seccomp:\t2" in (task / "status").read_text(), task
    assert not os.path.exists(f"/proc/{pid}/root/etc/passwd")

    assert user.banger("vm", "exec", "box", "--", "id", "-un").stdout == "root\n"
    assert user.banger("vm", "ssh", "box", "--", "hostname").stdout == "box\n"
    user.banger("vm", "stop", "box", timeout=120)
    user.banger("vm", "delete", "box")
