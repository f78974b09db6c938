"""The jail as a plan: whose it is, the steps, the jailer's command line."""

from dataclasses import replace
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from banger.host import jail_plan
from banger.host.confine_plan import Confinement, Limits
from banger.host.jail_plan import COUNT, FIRST_ID, Jail
from banger.host.namespaces import NamespacePair

JAIL = Jail(
    "0123456789ab",
    Path("/b/jailer"),
    Path("/b/firecracker"),
    Path("/s/vms/v/jail"),
    100007,
    100007,
    "tap7",
)
WHAT = Confinement(
    code=(), limits=Limits(file_bytes=1 << 33, data_bytes=1 << 29, processes=36), readable=("/s/images/i/vmlinux",),
    writable=("/s/vms/v/overlay.img",), socket_dirs=("/r/v",), devices=("/dev/kvm", "/dev/net/tun"), namespaces=NamespacePair(8, 9),
)  # fmt: skip


def test_the_steps_in_order():
    steps = jail_plan.steps(JAIL, WHAT, Path("/sys/fs/cgroup/banger/0123456789ab"))
    assert "\n".join(step.describe() for step in steps) == snapshot("""\
new keyring
drop groups
join cgroup /sys/fs/cgroup/banger/0123456789ab
enter network 9
own tap tap7 100007
new namespaces mount pid ipc uts
become init
own session
host name vmm
limit pids
new jail /s/vms/v/jail
bind /r/v socket /s/vms/v/jail/firecracker/0123456789ab/root
bind /s/images/i/vmlinux read /s/vms/v/jail/firecracker/0123456789ab/root
bind /s/vms/v/overlay.img write /s/vms/v/jail/firecracker/0123456789ab/root
limit DATA 536870912
limit CORE 1
limit NPROC 36\
""")


def test_a_vm_without_a_network_gets_an_empty_one():
    alone = Confinement(code=(), limits=WHAT.limits)
    words = [step.describe() for step in jail_plan.steps(replace(JAIL, tap=""), alone, None)]
    assert "new namespaces mount pid ipc uts network" in words
    assert not any(word.startswith(("enter network", "own tap", "join cgroup")) for word in words)


def test_the_jailers_command_line():
    assert " ".join(jail_plan.argv(JAIL, WHAT, ["--api-sock", "/r/v/api.sock"])) == snapshot(
        "/b/jailer --id 0123456789ab --exec-file /b/firecracker --uid 100007 --gid 100007 --chroot-base-dir /s/vms/v/jail --resource-limit fsize=8589934592 --resource-limit no-file=1024 -- --api-sock /r/v/api.sock"
    )


@pytest.mark.parametrize(
    ("subuid", "subgid", "wanted"),
    [
        ("root:100000:65536\n", "root:100000:65536\n", 100007),
        ("ann:100000:65536\nroot:500000:65536\n", "root:500000:65536\n", 500007),
        ("root:100000:65536\n", "root:200000:65536\n", FIRST_ID + 7),  # one id for both is wanted
        ("root:100000:7\n", "root:100000:7\n", FIRST_ID + 7),  # too few
        ("root:x:y\nroot\n\n", "root:100000:65536\n", FIRST_ID + 7),
        ("", "", FIRST_ID + 7),
    ],
)
def test_a_vms_user_is_of_roots_own_range_or_of_nobodys(subuid, subgid, wanted):
    assert jail_plan.own_ids(subuid, subgid).of(7) == wanted


def test_the_ids_of_jails_are_known_and_no_others():
    ids = jail_plan.own_ids("", "")
    assert all(ids.of(index) in ids for index in range(1000))
    assert 0 not in ids
    assert FIRST_ID - 1 not in ids
    assert FIRST_ID + COUNT not in ids
