"""What somebody who broke out of a guest into its VMM would try: a program that runs in the VMM's place.

``python hostile.py ATTEMPT JSON`` prints one JSON object as its last line: {"got": what was reached} or {"denied": errno's name, "what": text}.
Standard library only.
"""

import array
import ctypes
import errno
import fcntl
import json
import mmap
import os
import resource
import signal
import socket
import struct
import sys
import time

libc = ctypes.CDLL(None, use_errno=True)
CLONE_NEWUSER, CLONE_NEWNET = 0x10000000, 0x40000000
PTRACE_ATTACH, PTRACE_DETACH = 16, 17
AT_EMPTY_PATH, AT_FDCWD = 0x1000, -100
MS_REMOUNT, MS_BIND = 0x20, 0x1000
SESSION_KEYRING, USER_KEYRING = -3, -4
KEYCTL_LINK, KEYCTL_SEARCH, KEYCTL_READ = 8, 10, 11
NUMBERS = {
    "x86_64": {"keyctl": 250, "ptrace": 101, "process_vm_readv": 310, "clone": 56, "capset": 126, "pidfd_open": 434, "setns": 308},
    "aarch64": {"keyctl": 219, "ptrace": 117, "process_vm_readv": 270, "clone": 220, "capset": 91, "pidfd_open": 434, "setns": 268},
}[os.uname().machine]  # fmt: skip


def checked(result, what=""):
    if result == -1:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), what)
    return result


def system_call(name, *arguments):
    words = [ctypes.c_long(a) if isinstance(a, int) else a for a in arguments]
    return checked(libc.syscall(ctypes.c_long(NUMBERS[name]), *words), name)


def read_file(path):
    with open(path, "rb") as file:
        return file.read(64).decode(errors="replace")


def write_file(path):
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.pwrite(descriptor, b"pwned", 0)
    finally:
        os.close(descriptor)
    return "written"


def list_directory(path):
    return sorted(os.listdir(path))


def make_file(directory):
    path = f"{directory}/made"
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o600))
    os.unlink(path)
    return path


def make_link(directory, target):
    path = f"{directory}/link"
    os.symlink(target, path)
    os.unlink(path)
    return path


def make_socket(directory):
    with socket.socket(socket.AF_UNIX) as made:
        made.bind(f"{directory}/made.sock")
    os.unlink(f"{directory}/made.sock")
    return "bound"


def make_writable_again(path):
    """Lift the read-only flag of one of its own mounts."""
    checked(libc.mount(b"none", path.encode(), None, ctypes.c_ulong(MS_REMOUNT | MS_BIND), None))
    return write_file(path)


def grow_file(path, size_bytes):
    descriptor = os.open(path, os.O_WRONLY)
    before = os.fstat(descriptor).st_size
    try:
        os.ftruncate(descriptor, size_bytes)
        os.ftruncate(descriptor, before)
    finally:
        os.close(descriptor)
    return size_bytes


def run_own_file(path, program):
    """Put a program on its own disk and execute it."""
    with open(program, "rb") as source, open(path, "r+b") as target:
        target.write(source.read())
    os.chmod(path, 0o700)
    pid = os.fork()
    if pid == 0:
        try:
            os.execv(path, ["busybox", "true"])
        except OSError as error:
            os._exit(error.errno)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    if status:
        raise OSError(status, os.strerror(status))
    return "it ran"


def connect_unix(path):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    return path


def connect_abstract(name):
    with socket.socket(socket.AF_UNIX) as client:
        client.connect("\0" + name)
    return name


def connect_tcp(port):
    with socket.create_connection(("127.0.0.1", port), timeout=3):
        return port


def see_links():
    return sorted(name for _, name in socket.if_nameindex())


def open_tap(name):
    """Attach to a TAP that is there (Firecracker does so)."""
    descriptor = os.open("/dev/net/tun", os.O_RDWR)
    fcntl.ioctl(descriptor, 0x400454CA, struct.pack("16sH22x", name.encode(), 0x5002))  # TUNSETIFF
    os.close(descriptor)
    return name


def change_link():
    """Set the loopback interface up, or down and up: needs CAP_NET_ADMIN over this network namespace."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
        request = struct.pack("16sH22x", b"lo", 0)
        flags = struct.unpack("16sH22x", fcntl.ioctl(s, 0x8913, request))[1]
        fcntl.ioctl(s, 0x8914, struct.pack("16sH22x", b"lo", flags | 1))
    return flags


def ask_network_of(descriptor):
    """The interfaces of the network in which an inherited socket was made (SIOCGIFCONF)."""
    room = array.array("B", bytes(4096))
    request = struct.pack("iL", len(room), room.buffer_info()[0])
    return struct.unpack("iL", fcntl.ioctl(descriptor, 0x8912, request))[0]


def make_raw_socket():
    socket.socket(socket.AF_PACKET, socket.SOCK_RAW).close()
    return "a raw socket"


def signal_process(pid):
    """Whether a signal would be delivered (signal 0 does no harm)."""
    os.kill(pid, 0)
    return pid


def signal_all():
    """Whether there is any other process that could be signalled."""
    os.kill(-1, 0)
    return "somebody"


def attach(pid):
    system_call("ptrace", PTRACE_ATTACH, pid, None, None)
    os.waitpid(pid, 0x40000000)  # __WALL
    system_call("ptrace", PTRACE_DETACH, pid, None, None)
    return pid


def read_memory(pid, address):
    room = ctypes.create_string_buffer(8)
    local = struct.pack("PN", ctypes.addressof(room), 8)
    remote = struct.pack("PN", address, 8)
    words = [ctypes.create_string_buffer(v, 16) for v in (local, remote)]
    system_call("process_vm_readv", pid, words[0], 1, words[1], 1, 0)
    return room.raw.hex()


def open_pidfd(pid):
    os.close(system_call("pidfd_open", pid, 0))
    return pid


def read_proc(pid):
    return read_file(f"/proc/{pid}/cmdline")


def mount_proc(directory):
    checked(libc.mount(b"proc", directory.encode(), b"proc", ctypes.c_ulong(0), None), "mount")
    checked(libc.umount2(directory.encode(), 2))
    return directory


def mount_tmpfs(directory):
    checked(libc.mount(b"none", directory.encode(), b"tmpfs", ctypes.c_ulong(0), None), "mount")
    checked(libc.umount2(directory.encode(), 2))
    return directory


def unmount(path):
    checked(libc.umount2(path.encode(), 2), path)
    return path


def change_root(directory):
    os.chroot(directory)
    return directory


def climb_out():
    """The classic: a directory held open, another root, and up. Without the right to change root, just up."""
    for _ in range(64):
        os.chdir("..")
    return read_file("etc/passwd")


def make_device(directory):
    path = f"{directory}/mem"
    os.mknod(path, 0o600 | 0o020000, os.makedev(1, 1))
    os.unlink(path)
    return path


def open_device(path):
    os.close(os.open(path, os.O_RDONLY))
    return path


def new_user_namespace():
    checked(libc.unshare(ctypes.c_int(CLONE_NEWUSER)), "unshare")
    return "all capabilities in it"


def clone_user_namespace():
    """The same by clone(2)."""
    pid = system_call("clone", CLONE_NEWUSER | signal.SIGCHLD, None, None, None, None)
    if pid == 0:
        os._exit(0)
    os.waitpid(pid, 0)
    return pid


def new_network_namespace():
    checked(libc.unshare(ctypes.c_int(CLONE_NEWNET)), "unshare")
    return "unshared"


def have_capabilities():
    header = ctypes.create_string_buffer((0x20080522).to_bytes(4, "little") + bytes(4), 8)
    sets = ctypes.create_string_buffer(24)
    checked(libc.capget(header, sets))
    held = sets.raw.hex()
    if int(held, 16) == 0:
        raise OSError(errno.EPERM, "no capability in any set")
    return held


def regain_capabilities():
    header = ctypes.create_string_buffer((0x20080522).to_bytes(4, "little") + bytes(4), 8)
    sets = ctypes.create_string_buffer(b"\xff\xff\x0f\x00" * 3 + bytes(12), 24)
    system_call("capset", header, sets)
    return "set"


def become_root():
    os.setuid(0)
    return os.getuid()


def groups():
    return os.getgroups()


def drop_groups():
    os.setgroups([])
    return "dropped"


def run_setuid(program):
    """A program that belongs to another user and has the set-user-ID bit prints that user's number."""
    before = os.geteuid()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.dup2(write_end, 1)
        os.execv(program, ["id", "-u"])
    os.close(write_end)
    os.waitpid(pid, 0)
    with os.fdopen(read_end) as reader:
        after = int(reader.read())
    if after == before:
        raise OSError(errno.EPERM, f"still user {after}")
    return after


def read_key(keyring, name):
    if (
        keyring != SESSION_KEYRING
    ):  # it belongs to the user, and who links it possesses what is in it
        system_call("keyctl", KEYCTL_LINK, keyring, SESSION_KEYRING, 0, 0)
    number = system_call("keyctl", KEYCTL_SEARCH, SESSION_KEYRING, b"user", name.encode(), 0)
    room = ctypes.create_string_buffer(64)
    length = system_call("keyctl", KEYCTL_READ, number, room, 64, 0)
    return room.raw[:length].decode()


def set_clock():
    time.clock_settime(time.CLOCK_REALTIME, time.time())
    return "set"


def host_name():
    return os.uname().nodename


def fork_bomb(limit):
    """Processes until there are ``limit``; all of them are ended again."""
    made = []
    try:
        while len(made) < limit:
            pid = os.fork()
            if pid == 0:
                signal.pause()
                os._exit(0)
            made.append(pid)
    finally:
        for pid in made:
            os.kill(pid, signal.SIGKILL)
        for pid in made:
            os.waitpid(pid, 0)
    return len(made)


def take_memory(size_bytes):
    held = mmap.mmap(-1, size_bytes, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    held.close()
    return size_bytes


def dump_core(directory):
    """Crash in a child; the kernel says whether it wrote a core."""
    os.chdir(directory)
    pid = os.fork()
    if pid == 0:
        resource.setrlimit(resource.RLIMIT_CORE, [resource.getrlimit(resource.RLIMIT_CORE)[1]] * 2)
        signal.signal(signal.SIGSEGV, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGSEGV)
        os._exit(0)
    status = os.waitpid(pid, 0)[1]
    if not os.WCOREDUMP(status):
        raise OSError(errno.EPERM, "no core")
    return os.WTERMSIG(status)


def raise_limit():
    hard = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    wanted = resource.RLIM_INFINITY if hard == resource.RLIM_INFINITY else hard + 1
    resource.setrlimit(resource.RLIMIT_FSIZE, (wanted, wanted))
    return "raised"


def open_descriptors(expected):
    """Descriptors beyond the expected ones; of directories there may be none at all."""
    found = []
    for number in range(4096):
        try:
            os.fstat(number)
        except OSError:
            continue
        found.append(number)
    extra = sorted(set(found) - set(expected))
    if not extra:
        raise OSError(errno.EBADF, f"just {found}")
    return extra


def environment():
    return sorted(os.environ)


def main():
    attempt, arguments = sys.argv[1], json.loads(sys.argv[2])
    try:
        answer = {"got": globals()[attempt](**arguments)}
    except (OSError, MemoryError) as error:
        name = errno.errorcode.get(getattr(error, "errno", None) or 0, type(error).__name__)
        answer = {"denied": name, "what": str(error)}
    except ValueError as error:  # setrlimit's EPERM
        answer = {"denied": "EPERM", "what": str(error)}
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
