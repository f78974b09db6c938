"""Runs between the daemon and a VMM, started by `banger.host.confine`: takes away what the VMM may not have, then becomes the VMM.

argv: the number of a SEQPACKET socket, and those of the descriptors to keep, with commas. From the socket come the steps
(`banger.host.confine_plan.message`), then the program's argv; each answer is words that end in NUL:

    pid N                    the VMM's process, a child of the daemon, in the daemon's numbering
    note TEXT                something that this kernel cannot do, and that is no reason to stop
    failed STEP ERRNO TEXT   a step could not be done; this is the end
    ready                    all is done; the program is executed when a message comes, and the socket closes with that

If the daemon ends meanwhile so does this. Standard library only, and little of it: it is up in 20 ms.
"""

from __future__ import annotations

import _signal
import os
import resource
import sys

from banger.host import landlock, seccomp, syscalls, tun

_MAX_MESSAGE_BYTES = 1 << 18
_ROOT = "/proc"  # where the new root is put together: there on every host, and no file of a VM is below it
_JAIL_OPTIONS = "size=32m,nr_inodes=1k,mode=0755"  # Firecracker's program is copied into it
_ROOT_OPTIONS = "size=1m,nr_inodes=4k,mode=0755"
_KINDS = {
    "mount": syscalls.CLONE_NEWNS,
    "pid": syscalls.CLONE_NEWPID,
    "ipc": syscalls.CLONE_NEWIPC,
    "uts": syscalls.CLONE_NEWUTS,
    "network": syscalls.CLONE_NEWNET,
}
_CODE = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_RDONLY
_BIND_FLAGS = {
    "code": _CODE,
    "read": _CODE | syscalls.MS_NOEXEC,
    "write": syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC,
    "socket": syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC,
    "device": syscalls.MS_NOSUID | syscalls.MS_NOEXEC,
    "disk": syscalls.MS_NOSUID | syscalls.MS_NOEXEC,
}
_READ = landlock.READ_FILE | landlock.READ_DIR
_WRITE = landlock.READ_FILE | landlock.WRITE_FILE | landlock.TRUNCATE
_RIGHTS = {
    "code": _READ | landlock.EXECUTE,
    "read": _READ,
    "write": _WRITE,
    "socket": _READ | landlock.WRITE_FILE | landlock.MAKE_SOCK | landlock.REMOVE_FILE,
    "device": landlock.READ_FILE | landlock.WRITE_FILE | landlock.IOCTL_DEV,
    "disk": landlock.READ_FILE | landlock.WRITE_FILE | landlock.IOCTL_DEV,
}
_COUNTED_BY_NAMESPACE = (5, 14)  # since then RLIMIT_NPROC counts a user of a user namespace
_PID_MAX_BY_NAMESPACE = (6, 14)  # since then kernel.pid_max belongs to a pid namespace
_LEAST_PID_MAX = "301"
_DESCRIPTORS = 1 << 16


class Child:
    """Does the steps, in order; one function a step."""

    def __init__(self, channel: int) -> None:
        self._channel = channel
        self._told_pid = False
        self._ruleset: landlock.Ruleset | None = None

    def say(self, *words: str) -> None:
        """Tell the daemon."""
        os.write(self._channel, b"".join(os.fsencode(word) + b"\0" for word in words))

    def ready(self) -> bool:
        """Tell the daemon that all is done; whether it says that the program may begin."""
        if not self._told_pid:
            self.say("pid", str(os.getpid()))
        self.say("ready")
        return os.read(self._channel, 1) != b""

    def do(self, name: str, arguments: list[str]) -> None:
        """One step."""
        getattr(self, f"step_{name}")(*arguments)

    def step_new_keyring(self) -> None:
        """The keys of the caller's session stay with the caller."""
        with _Wanted(self, "no keyring of its own"):
            syscalls.join_new_session_keyring()

    def step_drop_groups(self) -> None:
        """Root's supplementary groups; others cannot drop theirs."""
        with _Wanted(self, "supplementary groups are kept"):
            os.setgroups([])

    def step_enter(self, user: str, network: str) -> None:
        """Into the namespaces of a network."""
        syscalls.enter(int(user), syscalls.CLONE_NEWUSER)
        syscalls.enter(int(network), syscalls.CLONE_NEWNET)

    def step_new_user(self, inside: str) -> None:
        """A user namespace in which only the caller exists, as an ordinary user, and nobody can change groups."""
        uid, gid = os.geteuid(), os.getegid()
        syscalls.leave(syscalls.CLONE_NEWUSER)
        _write("/proc/self/setgroups", "deny")
        _write("/proc/self/uid_map", f"{inside} {uid} 1")
        _write("/proc/self/gid_map", f"{inside} {gid} 1")

    def step_new_namespaces(self, *kinds: str) -> None:
        """New namespaces of these kinds; that of processes begins with `step_become_init`."""
        flags = 0
        for kind in kinds:
            flags |= _KINDS[kind]
        syscalls.leave(flags)
        with _Wanted(self, "no cgroup namespace"):
            syscalls.leave(syscalls.CLONE_NEWCGROUP)

    def step_forbid_user_namespaces(self) -> None:
        """None can be made inside, which would give back capabilities in it."""
        path = "/proc/sys/user/max_user_namespaces"
        with _Wanted(self, "user namespaces stay possible inside"):
            _write(path, "0")

    def step_become_init(self) -> None:
        """Go on as process 1 of the new namespace, a child of the daemon like the process that ends here."""
        told, tell = os.pipe()
        pid = syscalls.clone_sibling()
        if pid:
            self.say("pid", str(pid))
            os.write(tell, b"x")
            os._exit(0)
        os.close(tell)
        if not os.read(
            told, 1
        ):  # the daemon must know the process before it hears that it is ready
            os._exit(1)
        os.close(told)
        self._told_pid = True

    def step_own_session(self) -> None:
        """No terminal, no process group of others."""
        os.setsid()

    def step_host_name(self, name: str) -> None:
        """The host's own is not the VMM's business."""
        syscalls.set_host_name(name)

    def step_limit_pids(self) -> None:
        """Few processes, also for root, whom RLIMIT_NPROC does not count. On older kernels the number is the host's: hands off."""
        if _kernel() >= _PID_MAX_BY_NAMESPACE:
            path = "/proc/sys/kernel/pid_max"
            with _Wanted(self, "processes are not limited"):
                _write(path, _LEAST_PID_MAX)

    def step_new_root(self) -> None:
        """An empty root, still beside the old one."""
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        flags = syscalls.MS_NOSUID | syscalls.MS_NODEV | syscalls.MS_NOEXEC
        syscalls.mount("vmm", _ROOT, "tmpfs", flags, _ROOT_OPTIONS)
        os.mkdir(f"{_ROOT}/old", 0o700)

    def step_bind(self, path: str, kind: str, root: str = _ROOT) -> None:
        """``path`` of the host at the same place in the new root."""
        target = root + path
        os.makedirs(os.path.dirname(target), 0o755, exist_ok=True)
        if os.path.isdir(path):
            os.makedirs(target, 0o755, exist_ok=True)
        elif not os.path.exists(target):
            os.close(os.open(target, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
        syscalls.mount(path, target, None, syscalls.MS_BIND | syscalls.MS_REC)
        flags = syscalls.mount_flags(target) | _BIND_FLAGS[kind]
        syscalls.mount("none", target, None, syscalls.MS_BIND | syscalls.MS_REMOUNT | flags)

    def step_join_cgroup(self, directory: str) -> None:
        """Be limited by a cgroup from here on (cgroup v2: 0 is whoever writes)."""
        _write(f"{directory}/cgroup.procs", "0")

    def step_enter_network(self, network: str) -> None:
        """Into a network's namespace, as root of this host."""
        syscalls.enter(int(network), syscalls.CLONE_NEWNET)

    def step_own_tap(self, name: str, uid: str) -> None:
        """The TAP waits for this user alone: other VMMs are in the same network's namespace."""
        tun.give_tap(name, int(uid))

    def step_new_jail(self, base: str) -> None:
        """A file system for a jail at ``base``, which nobody else sees. Devices and programs work in it; another user may enter."""
        syscalls.mount("none", "/", None, syscalls.MS_REC | syscalls.MS_PRIVATE)
        syscalls.mount("jail", base, "tmpfs", syscalls.MS_NOSUID, _JAIL_OPTIONS)
        os.umask(0o022)

    def step_close_root(self) -> None:
        """The new root is the only one, and nothing can be written to it."""
        syscalls.exchange_root(_ROOT, f"{_ROOT}/old")
        os.chdir("/")
        syscalls.detach("/old")
        os.rmdir("/old")
        flags = syscalls.mount_flags("/") | syscalls.MS_RDONLY
        syscalls.mount("none", "/", None, syscalls.MS_BIND | syscalls.MS_REMOUNT | flags)

    def step_limit(self, name: str, value: str) -> None:
        """Soft and hard limit ``name``, but never above the present one."""
        if name == "NPROC" and _kernel() < _COUNTED_BY_NAMESPACE:
            return
        which = getattr(resource, f"RLIMIT_{name}")
        hard = resource.getrlimit(which)[1]
        wanted = int(value) if hard == resource.RLIM_INFINITY else min(int(value), hard)
        resource.setrlimit(which, (wanted, wanted))

    def step_begin_landlock(self, *open_: str) -> None:
        """From here on `step_allow` says what is allowed."""
        if landlock.abi():
            self._ruleset = landlock.Ruleset(tcp="tcp" in open_)
        else:
            self.say("note", "this kernel has no Landlock")

    def step_allow(self, path: str, kind: str) -> None:
        """Allow what the kind of ``path`` means."""
        if self._ruleset is not None:
            self._ruleset.allow(path, _RIGHTS[kind])

    def step_enforce_landlock(self) -> None:
        """Forbid the rest."""
        syscalls.forbid_new_privileges()
        if self._ruleset is not None:
            self._ruleset.enforce()

    def step_require_landlock(self) -> None:
        """Where nothing else confines it."""
        if self._ruleset is None:
            raise OSError(95, "this kernel has no Landlock")  # EOPNOTSUPP

    def step_drop_privileges(self) -> None:
        """No capability, and none to come."""
        syscalls.forbid_new_privileges()
        syscalls.drop_capabilities()

    def step_filter_system_calls(self, *open_: str) -> None:
        """System calls that no VMM makes fail from here on."""
        with _Wanted(self, "no filter of system calls"):
            seccomp.install(socket_ioctls="socket-ioctls" in open_)


class _Wanted:
    """What is done in this context is wanted, not needed: an error is told, no more."""

    def __init__(self, child: Child, what: str) -> None:
        self._child = child
        self._what = what

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: object, traceback: object) -> bool:
        if isinstance(error, OSError):
            self._child.say("note", f"{self._what}: {error.strerror}")
            return True
        return False


def _write(path: str, text: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(descriptor, text.encode())
    finally:
        os.close(descriptor)


def _kernel() -> tuple[int, int]:
    major, minor = os.uname().release.partition("-")[0].split(".")[:2]
    return int(major), int("".join(c for c in minor if c.isdigit()))


def words(data: bytes) -> list[str]:
    """The words of a message."""
    return [os.fsdecode(word) for word in data.split(b"\0")[:-1]]


def _close_all_but(kept: set[int]) -> None:
    low = 3
    for descriptor in sorted(kept):
        os.closerange(low, descriptor)
        low = max(low, descriptor + 1)
    os.closerange(low, _DESCRIPTORS)


def main() -> None:
    """See the module."""
    channel = int(sys.argv[1])
    kept = {int(number) for number in filter(None, sys.argv[2].split(","))}
    os.set_inheritable(channel, False)  # noqa: FBT003  the standard library's signature
    os.umask(0o077)
    child = Child(channel)
    plan = words(os.read(channel, _MAX_MESSAGE_BYTES))
    argv = words(os.read(channel, _MAX_MESSAGE_BYTES))
    name = "begin"
    try:
        while plan:
            name, count = plan[0], int(plan[1])
            child.do(name, plan[2 : 2 + count])
            del plan[: 2 + count]
        if not child.ready() or name == "begin":
            os._exit(1)
        name = "execute"
        _close_all_but({*kept, channel})
        for number in (_signal.SIGPIPE, _signal.SIGXFSZ):  # Python ignores them
            _signal.signal(number, _signal.SIG_DFL)
        os.execve(argv[0], argv, {"LC_ALL": "C.UTF-8", "PATH": "/usr/bin:/bin"})  # noqa: S606  argv list, no shell
    except OSError as error:
        where = f": {error.filename}" if error.filename else ""
        child.say("failed", name, str(error.errno or 0), f"{error.strerror or error}{where}")
        os._exit(1)
