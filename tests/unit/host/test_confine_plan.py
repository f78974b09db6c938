"""The plan of a confinement: golden, and what must hold for any."""

from pathlib import Path

from banger.host import confine_child, jail_plan
from banger.host.confine_plan import (
    Confinement,
    Limits,
    Step,
    by_landlock_alone,
    in_namespaces,
    message,
)
from banger.host.jail_plan import Jail
from banger.host.namespaces import NamespacePair

JAIL = Jail("a" * 12, Path("/b/jailer"), Path("/b/firecracker"), Path("/s/jail"), 7, 7, "tap7")
LIMITS = Limits(file_bytes=9 << 30, data_bytes=2 << 30, processes=258)
TOY = Confinement(
    code=("/usr/bin/vmm", "/lib64/ld.so"),
    readable=("/images/kernel",),
    writable=("/vms/a/disk",),
    socket_dirs=("/run/vms/a",),
    devices=("/dev/kvm",),
    limits=LIMITS,
)


def described(steps):
    return [step.describe() for step in steps]


def test_a_users_vmm_gets_namespaces_a_root_limits_and_landlock_in_this_order():
    assert described(in_namespaces(TOY, root=False)) == [
        "new keyring",
        "new user 1000",
        "new namespaces mount pid ipc uts network",
        "forbid user namespaces",
        "become init",
        "own session",
        "host name vmm",
        "limit pids",
        "new root",
        "bind /dev/kvm device",
        "bind /images/kernel read",
        "bind /lib64/ld.so code",
        "bind /run/vms/a socket",
        "bind /usr/bin/vmm code",
        "bind /vms/a/disk write",
        "close root",
        "limit FSIZE 9663676416",
        "limit DATA 2147483648",
        "limit NOFILE 1024",
        "limit CORE 1",
        "limit NPROC 258",
        "begin landlock",
        "allow /dev/kvm device",
        "allow /images/kernel read",
        "allow /lib64/ld.so code",
        "allow /run/vms/a socket",
        "allow /usr/bin/vmm code",
        "allow /vms/a/disk write",
        "enforce landlock",
        "drop privileges",
        "filter system calls",
    ]


def test_root_gives_up_its_groups_while_it_can():
    steps = described(in_namespaces(TOY, root=True))
    assert steps.index("drop groups") < steps.index("new user 1000")


def test_where_a_network_waits_it_is_entered_before_anything_is_given_up():
    confinement = Confinement(code=(), limits=LIMITS, namespaces=NamespacePair(7, 8))
    steps = described(in_namespaces(confinement, root=False))
    assert steps[1:4] == ["enter 7 8", "new user 1000", "new namespaces mount pid ipc uts"]


def test_with_the_hosts_network_it_has_tcp_and_its_sockets():
    steps = described(in_namespaces(Confinement((), LIMITS, host_network=True), root=False))
    assert "new namespaces mount pid ipc uts" in steps
    assert "begin landlock tcp" in steps
    assert steps[-1] == "filter system calls socket-ioctls"


def test_landlock_alone_is_required_and_counts_no_processes():
    steps = described(by_landlock_alone(TOY, root=False))
    assert steps == [
        "new keyring",
        "limit FSIZE 9663676416",
        "limit DATA 2147483648",
        "limit NOFILE 1024",
        "limit CORE 1",
        "begin landlock",
        "allow /dev/kvm device",
        "allow /images/kernel read",
        "allow /lib64/ld.so code",
        "allow /run/vms/a socket",
        "allow /usr/bin/vmm code",
        "allow /vms/a/disk write",
        "enforce landlock",
        "require landlock",
        "drop privileges",
        "filter system calls",
    ]


def test_every_step_has_its_function_in_the_child():
    steps = [
        *in_namespaces(Confinement((), LIMITS, namespaces=NamespacePair(7, 8)), root=True),
        *by_landlock_alone(TOY, root=True),
        *jail_plan.steps(
            JAIL, Confinement((), LIMITS, namespaces=NamespacePair(7, 8)), Path("/cg")
        ),
    ]
    wanted = {f"step_{step.name}" for step in steps} | {"step_bind"}
    has = {name for name in dir(confine_child.Child) if name.startswith("step_")}
    assert has == wanted


def test_a_path_listed_twice_is_bound_once_as_it_was_listed_first():
    confinement = Confinement(code=("/a",), limits=LIMITS, writable=("/a", "/a/b"))
    assert list(confinement.paths()) == [("/a", "code"), ("/a/b", "write")]


def test_the_child_reads_what_the_plan_says():
    steps = [
        Step("bind", ("/a b\n", "read")),
        Step("begin_landlock"),
        Step("bind", ("/\udcff", "read")),
    ]
    words = confine_child.words(message(steps))
    assert words == [
        "bind",
        "2",
        "/a b\n",
        "read",
        "begin_landlock",
        "0",
        "bind",
        "2",
        "/\udcff",
        "read",
    ]
