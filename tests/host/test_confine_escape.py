"""What an intruder in a VMM's place tries, and why each attempt leads nowhere.

The intruder is a Python program, started by the same launcher with what a VM has. Each attempt is first made unconfined, where it works,
so that a refusal means something; as this user, and as root also as an ordinary one.
"""

import contextlib
import json
import os
import shutil
import socket
import subprocess
import tempfile
from pathlib import Path

import pytest

from banger.host import elf, landlock
from banger.host.confine_plan import HOST_NAME
from tests.framework import hostile, jail

KEPT = 20  # the number of the one descriptor that the intruder inherits
UIDS = [os.geteuid(), jail.OTHER_UID] if os.geteuid() == 0 else [os.geteuid()]
MIB = 1 << 20
BUSYBOX = shutil.which("busybox")
_VICTIM = """
import ctypes, sys, time
secret = ctypes.create_string_buffer(b"secret!")
print(ctypes.addressof(secret), flush=True)
sys.stdin.read()
"""


def kernel():
    return tuple(int(part) for part in os.uname().release.split(".")[:2])


class World:
    """A host with two VMs of ``uid``: one is the intruder's, the other another's; and what else an intruder would like to reach."""

    def __init__(self, uid, stack):
        self.uid, self.python = uid, jail.python_of(uid)
        if self.python is None:
            pytest.skip(f"uid {uid} can run no Python here")
        self.root = Path(tempfile.mkdtemp(prefix="bge-", dir="/tmp"))
        stack.callback(shutil.rmtree, self.root)
        self.state, self.run = self.root / "state", self.root / "run"
        self.image = self._file("state/images/rootfs.img")
        self.database = self._file("state/banger.db")
        self.key = self._file("state/ssh/id_ed25519")
        self.disk, self.other_disk = (self._file(f"state/vms/{n}/overlay.qcow2") for n in "ab")
        self.log = self.root / "log"
        for name in "ab":
            (self.run / "vms" / name).mkdir(parents=True)
        self.own_dir = self.run / "vms" / "a"
        self.hostile = str(shutil.copy(hostile.__file__, self.root / "hostile.py"))
        self.daemon_socket = self._listen(socket.AF_UNIX, str(self.run / "bangerd.sock"), stack)
        self.other_socket = self._listen(socket.AF_UNIX, str(self.run / "vms/b/agent.sock"), stack)
        self.abstract = self._listen(socket.AF_UNIX, f"\0banger-{self.root.name}", stack)[
            1:
        ].decode()
        self.port = self._listen(socket.AF_INET, ("127.0.0.1", 0), stack)[1]
        self._give_to(uid)
        self.victim, self.secret_at = self._start_victim(stack)

    def _file(self, name):
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"secret".ljust(MIB))
        return path

    def _listen(self, family, address, stack):
        listener = stack.enter_context(socket.socket(family))
        listener.bind(address)
        listener.listen()
        return listener.getsockname()

    def _give_to(self, uid):
        for path in [self.root, *self.root.rglob("*")]:
            os.chown(path, uid, uid)
            path.chmod(0o700 if path.is_dir() else 0o600)
        self.setuid = self.root / "other-users-program"
        shutil.copy("/usr/bin/id", self.setuid)
        if os.geteuid() == 0:
            os.chown(self.setuid, 0 if uid else jail.OTHER_UID, 0)
        self.setuid.chmod(0o4755)

    def _start_victim(self, stack):
        argv = [*jail.as_user(self.uid), self.python, "-I", "-S", "-c", _VICTIM]
        victim = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        stack.callback(victim.wait)
        stack.callback(victim.stdin.close)
        stack.callback(victim.stdout.close)
        return victim.pid, int(victim.stdout.readline())

    def confinement(self):
        """Program and library of the intruder, and what a VM has."""
        python = Path(self.python)
        library = subprocess.run(
            [self.python, "-I", "-S", "-c", "import os, _ctypes; print(os.path.dirname(os.__file__), _ctypes.__file__)"],
            capture_output=True, text=True, check=True,
        ).stdout.split()  # fmt: skip
        code = [
            *elf.needed(python, Path(library[1])),
            library[0],
            *elf.needed(self.setuid),
            BUSYBOX,
        ]
        return {
            "code": code,
            "readable": [str(self.hostile), str(self.image)],
            "writable": [str(self.disk)],
            "socket_dirs": [str(self.own_dir)],
            "devices": ["/dev/null", "/dev/urandom"],
        }

    def attempt(self, name, arguments, *, refuse=(), policies=("off", "auto")):
        """What came of it under each policy: the intruder's answer and how the launcher says that it was confined."""
        job = {
            "argv": [self.python, "-I", "-S", self.hostile, name, json.dumps(arguments)],
            "confinement": self.confinement(), "policies": policies, "log": str(self.log), "refuse": refuse,
            "limits": {"file_bytes": 2048 * MIB, "data_bytes": 512 * MIB, "processes": 64},
            "listen": [KEPT], "keys": "key" in name,
        }  # fmt: skip
        results = jail.run(job, self.uid, self.python)
        for result in results:
            assert "error" not in result, result
            result["answer"] = json.loads(result["output"].splitlines()[-1])
        return results


@pytest.fixture(scope="module", params=UIDS, ids=lambda uid: "root" if uid == 0 else "user")
def world(request):
    if BUSYBOX is None:
        pytest.skip("no busybox")
    with contextlib.ExitStack() as stack:
        yield World(request.param, stack)


@pytest.fixture
def refused(world):
    """Make an attempt: it must work unconfined (``control``; or only for root) and fail with one of ``reasons`` confined."""

    def check(attempt, /, *reasons, control=True, **arguments):
        arguments = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
        wanted = world.uid == 0 if control == "root" else control
        free, confined = world.attempt(attempt, arguments)
        assert confined["how"].startswith("confined"), confined
        if wanted:
            assert "got" in free["answer"], f"the attempt does not even work unconfined: {free}"
        assert confined["answer"].get("denied") in reasons, confined["answer"]

    return check


@pytest.fixture
def has(world):
    """What the intruder gets, confined."""

    def ask(attempt, /, **arguments):
        arguments = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
        (confined,) = world.attempt(attempt, arguments, policies=["auto"])
        return confined["answer"].get("got", confined["answer"])

    return ask


def test_a_vmm_can_use_what_is_its_own(world, has):
    assert has("read_file", path=world.image).startswith("secret")
    assert has("write_file", path=world.disk) == "written"
    assert has("make_socket", directory=world.own_dir) == "bound"
    assert has("open_device", path="/dev/urandom") == "/dev/urandom"


# Files


def test_another_vms_disk_cannot_be_read(refused, world):
    refused("read_file", "ENOENT", path=world.other_disk)


def test_another_vms_disk_cannot_be_written(refused, world):
    refused("write_file", "ENOENT", path=world.other_disk)


def test_the_database_cannot_be_read(refused, world):
    refused("read_file", "ENOENT", path=world.database)


def test_the_managed_ssh_key_cannot_be_read(refused, world):
    refused("read_file", "ENOENT", path=world.key)


def test_the_hosts_users_cannot_be_read(refused):
    refused("read_file", "ENOENT", path="/etc/passwd")


def test_the_state_directory_cannot_be_listed(refused, world):
    refused("list_directory", "EACCES", "EPERM", path=world.state / "vms")


def test_the_image_cannot_be_written(refused, world):
    refused("write_file", "EROFS", path=world.image)


def test_the_image_cannot_be_made_writable_again(refused, world):
    refused("make_writable_again", "EPERM", path=world.image, control=False)


def test_no_file_can_be_made_beside_its_disk(refused, world):
    refused("make_file", "EROFS", "EACCES", directory=world.disk.parent)


def test_no_file_can_be_made_in_the_root(refused):
    refused("make_file", "EROFS", "EACCES", directory="", control="root")


def test_no_file_can_be_made_among_its_sockets(refused, world):
    refused("make_file", "EACCES", directory=world.own_dir)


def test_no_link_that_the_daemon_would_follow_can_be_made_among_its_sockets(refused, world):
    refused("make_link", "EACCES", directory=world.own_dir, target=world.run / "bangerd.sock")


def test_what_it_wrote_on_its_disk_cannot_be_executed(refused, world):
    refused("run_own_file", "EACCES", path=world.disk, program=BUSYBOX)


def test_its_disk_cannot_grow_beyond_its_limit(refused, world):
    refused("grow_file", "EFBIG", path=world.disk, size_bytes=2049 * MIB)


def test_the_limit_of_its_disk_cannot_be_raised(refused):
    refused("raise_limit", "EPERM")


def test_there_is_no_way_up_out_of_its_root(refused):
    refused("climb_out", "ENOENT")


def test_it_cannot_change_its_root(refused):
    refused("change_root", "EPERM", directory="/", control="root")


# Sockets and networks


def test_the_daemon_cannot_be_called(refused, world):
    refused("connect_unix", "ENOENT", path=world.daemon_socket)


def test_another_vms_agent_cannot_be_called(refused, world):
    refused("connect_unix", "ENOENT", path=world.other_socket)


def test_abstract_sockets_of_the_host_cannot_be_called(refused, world):
    refused("connect_abstract", "ECONNREFUSED", "EPERM", name=world.abstract)


def test_services_on_the_hosts_loopback_cannot_be_called(refused, world):
    refused("connect_tcp", "ENETUNREACH", "ECONNREFUSED", "EACCES", port=world.port)


def test_no_link_of_the_host_is_seen(has):
    assert has("see_links") == ["lo"]


def test_the_network_of_an_inherited_socket_does_not_tell_of_itself(refused):
    refused("ask_network_of", "EPERM", descriptor=KEPT)


def test_no_link_can_be_changed(refused):
    refused("change_link", "EPERM", control="root")


def test_no_packet_can_be_forged(refused):
    refused("make_raw_socket", "EPERM", control="root")


# Processes


def test_no_process_of_the_host_can_be_signalled(refused, world):
    refused("signal_process", "ESRCH", pid=world.victim)


def test_there_is_nobody_else_to_signal(refused):
    refused("signal_all", "ESRCH")


def test_no_process_of_the_host_can_be_traced(refused, world):
    refused("attach", "ESRCH", "EPERM", pid=world.victim)


def test_no_memory_of_another_process_can_be_read(refused, world):
    refused("read_memory", "ESRCH", "EPERM", pid=world.victim, address=world.secret_at)


def test_no_process_of_the_host_can_be_held(refused, world):
    refused("open_pidfd", "ESRCH", "EINVAL", pid=world.victim)


def test_nothing_is_told_of_other_processes(refused, world):
    refused("read_proc", "ENOENT", pid=world.victim)


def test_there_is_no_descriptor_but_the_passed_ones(refused):
    refused("open_descriptors", "EBADF", expected=[0, 1, 2, KEPT], control=False)


def test_the_daemons_environment_is_not_its_own(has):
    assert has("environment") == ["LC_ALL", "PATH"]


def test_it_does_not_know_the_hosts_name(has):
    assert has("host_name") == HOST_NAME


# Devices, mounts, namespaces, privileges


def test_no_device_node_can_be_made(refused, world):
    refused("make_device", "EPERM", "EACCES", directory=world.own_dir, control="root")


@pytest.mark.parametrize("device", ["/dev/zero", "/dev/kvm", "/dev/net/tun", "/dev/mem"])
def test_no_other_device_can_be_opened(refused, world, device):
    refused("open_device", "ENOENT", path=device, control=device == "/dev/zero")


def test_proc_cannot_be_mounted(refused, world):
    refused("mount_proc", "EPERM", directory=world.own_dir, control=False)


def test_nothing_can_be_mounted(refused, world):
    refused("mount_tmpfs", "EPERM", directory=world.own_dir, control="root")


def test_nothing_can_be_unmounted(refused, world):
    refused("unmount", "EPERM", path=world.disk, control=False)


def test_no_user_namespace_can_be_made(refused):
    refused("new_user_namespace", "EPERM", "ENOSPC")


def test_no_user_namespace_can_be_cloned(refused):
    refused("clone_user_namespace", "EPERM", "ENOSPC")


def test_no_network_namespace_can_be_made(refused):
    refused("new_network_namespace", "EPERM", control="root")


def test_it_has_no_capabilities(refused):
    refused("have_capabilities", "EPERM", control="root")


def test_capabilities_cannot_be_regained(refused):
    refused("regain_capabilities", "EPERM", control="root")


def test_it_cannot_become_root(refused):
    refused("become_root", "EINVAL", "EPERM", control="root")


def test_roots_vmm_has_none_of_roots_groups(world, has):
    if world.uid == 0:  # others cannot drop theirs
        assert has("groups") == []


def test_groups_cannot_be_dropped(refused):
    refused("drop_groups", "EPERM", control="root")


def test_a_set_user_id_program_is_an_ordinary_one(refused, world):
    refused("run_setuid", "EPERM", program=world.setuid, control=os.geteuid() == 0)


@pytest.mark.parametrize(
    "ring", [hostile.SESSION_KEYRING, hostile.USER_KEYRING], ids=["session", "user"]
)
def test_keys_of_the_login_session_cannot_be_read(refused, ring):
    refused("read_key", "EPERM", keyring=ring, name="banger-secret")


def test_the_hosts_clock_cannot_be_set(refused):
    refused("set_clock", "EPERM", control=False)


# Bombs


def test_a_fork_bomb_has_an_end(refused, world):
    if world.uid == 0 and kernel() < (6, 14):
        pytest.skip("this kernel cannot limit the processes of root's VMMs without a cgroup")
    refused("fork_bomb", "EAGAIN", limit=400)


def test_memory_has_an_end(refused):
    refused("take_memory", "ENOMEM", size_bytes=1024 * MIB)


def test_no_core_is_dumped(refused, world):
    refused("dump_core", "EPERM", directory=world.own_dir)


# Where system calls cannot be filtered: each of the other layers must do alone what the filter does too


@pytest.fixture
def refused_without_filter(world):
    """As ``refused``, on a host without filters of system calls."""

    def check(attempt, /, *reasons, **arguments):
        arguments = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
        free, confined = world.attempt(attempt, arguments, refuse=["filters"])
        assert "no filter of system calls" in confined["how"], confined
        assert "got" in free["answer"], free
        assert confined["answer"].get("denied") in reasons, confined["answer"]

    return check


def test_no_user_namespace_can_be_made_without_a_filter(refused_without_filter):
    refused_without_filter("new_user_namespace", "ENOSPC")
    refused_without_filter("clone_user_namespace", "ENOSPC")


@pytest.mark.parametrize(
    "ring", [hostile.SESSION_KEYRING, hostile.USER_KEYRING], ids=["session", "user"]
)
def test_keys_are_not_found_without_a_filter(refused_without_filter, ring):
    refused_without_filter("read_key", "ENOKEY", keyring=ring, name="banger-secret")


def test_no_process_can_be_traced_or_read_without_a_filter(refused_without_filter, world):
    refused_without_filter("attach", "ESRCH", pid=world.victim)
    refused_without_filter("read_memory", "ESRCH", pid=world.victim, address=world.secret_at)


# Where the kernel has no Landlock: the mounts must do alone what it does too


@pytest.fixture
def without_landlock(world):
    """What the intruder gets, confined on a kernel without Landlock."""

    def ask(attempt, /, **arguments):
        arguments = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
        (confined,) = world.attempt(attempt, arguments, refuse=["landlock"], policies=["auto"])
        assert "no Landlock" in confined["how"], confined
        answer = confined["answer"]
        return answer.get("denied", answer.get("got"))

    return ask


def test_without_landlock_its_root_holds_the_listed_files_alone(without_landlock, world):
    listed = [path for kind in world.confinement().values() for path in kind]
    assert without_landlock("list_directory", path="/") == sorted({p.split("/")[1] for p in listed})
    assert without_landlock("list_directory", path=world.state) == ["images", "vms"]
    assert without_landlock("list_directory", path=world.state / "vms") == ["a"]
    assert without_landlock("list_directory", path="/dev") == ["null", "urandom"]


def test_without_landlock_nothing_can_be_written_but_its_disk(without_landlock, world):
    assert without_landlock("make_file", directory="") == "EROFS"
    assert without_landlock("make_file", directory=world.disk.parent) == "EROFS"
    assert without_landlock("write_file", path=world.image) == "EROFS"
    assert without_landlock("write_file", path=world.disk) == "written"


def test_without_landlock_what_it_wrote_cannot_be_executed(without_landlock, world):
    reason = without_landlock("run_own_file", path=world.disk, program=BUSYBOX)
    assert reason == "EACCES"


# Where the host refuses namespaces


@pytest.fixture(params=["namespaces", "mount"])
def landlocked(world, request):
    """As ``refused``, on a host that makes no namespaces, or worthless ones: Landlock alone must do."""

    def check(attempt, /, *reasons, abi=1, **arguments):
        if landlock.abi() < abi:
            pytest.skip(f"Landlock ABI {abi} is wanted, here is {landlock.abi()}")
        arguments = {k: str(v) if isinstance(v, Path) else v for k, v in arguments.items()}
        free, confined = world.attempt(attempt, arguments, refuse=[request.param])
        assert confined["how"] == "Landlock only", confined
        assert "refuses namespaces" in confined["warning"]
        assert "got" in free["answer"], free
        assert confined["answer"].get("denied") in reasons, confined["answer"]

    return check


def test_landlock_alone_keeps_it_from_other_files(landlocked, world):
    landlocked("read_file", "EACCES", path=world.other_disk)
    landlocked("read_file", "EACCES", path=world.key)
    landlocked("write_file", "EACCES", path=world.image)
    landlocked("make_file", "EACCES", directory=world.disk.parent)


def test_landlock_alone_keeps_it_from_other_devices(landlocked):
    landlocked("open_device", "EACCES", path="/dev/zero")


def test_landlock_alone_keeps_it_from_the_hosts_loopback(landlocked, world):
    landlocked("connect_tcp", "EACCES", abi=4, port=world.port)


def test_landlock_alone_keeps_it_from_abstract_sockets_and_signals(landlocked, world):
    landlocked("connect_abstract", "EPERM", abi=6, name=world.abstract)
    landlocked("signal_process", "EPERM", abi=6, pid=world.victim)


def test_landlock_alone_leaves_no_tracing_and_no_new_namespaces(landlocked, world):
    landlocked("attach", "EPERM", pid=world.victim)
    landlocked("clone_user_namespace", "EPERM")
