"""System calls that Python 3.11 has no name for, by libc. Cheap to import: programs that start in milliseconds use it.

Numbers and structures are those of linux/sched.h, linux/mount.h, linux/capability.h, linux/prctl.h and linux/keyctl.h. Every function
raises OSError with the kernel's reason.
"""

from __future__ import annotations

import ctypes
import errno
import os

CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
_CLONE_PARENT = 0x00008000

MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC = 1, 2, 4, 8
MS_REMOUNT, MS_NOATIME, MS_NODIRATIME, MS_BIND, MS_REC = 0x20, 0x400, 0x800, 0x1000, 0x4000
MS_PRIVATE, MS_RELATIME = 1 << 18, 1 << 21
_MNT_DETACH = 2
_ST_RELATIME = 4096

_PR_SET_SECUREBITS, _PR_SET_NO_NEW_PRIVS, _PR_CAPBSET_DROP = 28, 38, 24
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL = 47, 4
_SECURE_BITS = (
    0xEF  # NOROOT, NO_SETUID_FIXUP, KEEP_CAPS off, NO_CAP_AMBIENT_RAISE; all of them locked
)
_CAPABILITY_VERSION_3 = 0x20080522
_CAP_SETPCAP = 8
_MAX_CAPABILITIES = 64
_KEYCTL_JOIN_SESSION_KEYRING = 1
_SIGCHLD = 17
_PUNCH_HOLE = 0x2 | 0x1  # linux/falloc.h: PUNCH_HOLE, KEEP_SIZE

_NUMBERS = {  # clone, keyctl; the tables of the two architectures differ
    "x86_64": (56, 250),
    "aarch64": (220, 219),
}
_MOUNT_SETATTR = 442  # the same everywhere
_MOUNT_ATTR_RDONLY, _AT_RECURSIVE, _AT_FDCWD = 1, 0x8000, -100
_libc = ctypes.CDLL(None, use_errno=True)


def checked(result: int, what: str) -> int:
    """``result``, or OSError with the kernel's reason if it is -1."""
    if result == -1:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), what)
    return result


def system_call(number: int, *arguments: int | ctypes.Array[ctypes.c_char] | None) -> int:
    """The result of system call ``number``; -1 and errno as in syscall(2)."""
    words = (ctypes.c_long(a) if isinstance(a, int) else a for a in arguments)
    result: int = _libc.syscall(ctypes.c_long(number), *words)
    return result


def punch_hole(descriptor: int, offset: int, length: int) -> None:
    """As fallocate(2) does: the bytes read as zeros from now on and take no room; the file keeps its size."""
    result = _libc.fallocate(
        ctypes.c_int(descriptor),
        ctypes.c_int(_PUNCH_HOLE),
        ctypes.c_int64(offset),
        ctypes.c_int64(length),
    )
    checked(result, "fallocate")


def leave(flags: int) -> None:
    """As unshare(2) does: go on in new namespaces of these kinds."""
    checked(_libc.unshare(ctypes.c_int(flags)), "unshare")


def enter(descriptor: int, kind: int) -> None:
    """As setns(2) does: enter a namespace."""
    checked(_libc.setns(ctypes.c_int(descriptor), ctypes.c_int(kind)), "setns")


def clone_sibling() -> int:
    """As fork(2), but the child is a child of our parent (CLONE_PARENT): 0 in the child, its pid here.

    Python is not told, so that only a process with one thread may call it, whose child executes a program soon.
    """
    return checked(
        system_call(_NUMBERS[os.uname().machine][0], _CLONE_PARENT | _SIGCHLD, 0, 0, 0, 0), "clone"
    )


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """Mount something, or change a mount; an error names ``target``."""
    words = (os.fsencode(source), os.fsencode(target), kind and kind.encode())
    done = _libc.mount(*words, ctypes.c_ulong(flags), data and data.encode())
    checked(done, target)


def mount_flags(path: str) -> int:
    """The flags of the mount at ``path``, as mount(2) takes them: in a user namespace a remount may not lose any."""
    found = os.statvfs(path).f_flag
    kept = MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC | MS_NOATIME | MS_NODIRATIME
    return found & kept | (MS_RELATIME if found & _ST_RELATIME else 0)


def set_read_only(target: str, *, recursive: bool, read_only: bool) -> None:
    """Forbid writing to the mount at ``target``, with ``recursive`` to all beneath it, or allow it; mount_setattr(2), Linux 5.12."""
    flag = _MOUNT_ATTR_RDONLY.to_bytes(8, "little")
    sets, clears = (flag, bytes(8)) if read_only else (bytes(8), flag)
    attributes = ctypes.create_string_buffer(sets + clears + bytes(16), 32)
    path = ctypes.create_string_buffer(os.fsencode(target))
    flags = _AT_RECURSIVE if recursive else 0
    checked(system_call(_MOUNT_SETATTR, _AT_FDCWD, path, flags, attributes, 32), target)


def exchange_root(new: str, old: str) -> None:
    """As pivot_root(2) does: ``new`` is the root, the old one lies at ``old``."""
    checked(_libc.pivot_root(os.fsencode(new), os.fsencode(old)), new)


def detach(target: str) -> None:
    """Take a mount and all beneath it away; umount2(2) with MNT_DETACH."""
    checked(_libc.umount2(os.fsencode(target), _MNT_DETACH), target)


def set_host_name(name: str) -> None:
    """Name this host; sethostname(2)."""
    checked(_libc.sethostname(name.encode(), ctypes.c_size_t(len(name))), "sethostname")


def join_new_session_keyring() -> None:
    """A session keyring of this process's own, empty and without a name, in place of the inherited one."""
    number = _NUMBERS[os.uname().machine][1]
    checked(system_call(number, _KEYCTL_JOIN_SESSION_KEYRING, 0, 0, 0, 0), "keyctl")


def _prctl(option: int, *arguments: int) -> None:
    words = [ctypes.c_ulong(a) for a in (*arguments, 0, 0, 0, 0)[:4]]
    checked(_libc.prctl(ctypes.c_int(option), *words), "prctl")


def set_filter(program: bytes) -> None:
    """Filter this process's system calls by a struct sock_fprog, which points to memory of the caller's."""
    words = (ctypes.c_int(_PR_SET_SECCOMP), ctypes.c_ulong(_SECCOMP_MODE_FILTER))
    checked(_libc.prctl(*words, ctypes.create_string_buffer(program, len(program))), "prctl")


def forbid_new_privileges() -> None:
    """No program that this process executes gains anything by it (PR_SET_NO_NEW_PRIVS)."""
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def bound_capabilities(kept: set[int]) -> None:
    """No program that this process executes can have a capability but ``kept`` (numbers of linux/capability.h)."""
    for number in set(range(_MAX_CAPABILITIES)) - kept:
        try:
            _prctl(_PR_CAPBSET_DROP, number)
        except OSError as error:
            if error.errno != errno.EINVAL:  # the kernel has no such capability
                raise


def drop_capabilities() -> None:
    """Have no capability in any set, and none to regain. Whoever may not change bounding set and secure bits has none to lose there."""
    header = ctypes.create_string_buffer(_CAPABILITY_VERSION_3.to_bytes(4, "little") + bytes(4), 8)
    sets = ctypes.create_string_buffer(24)
    checked(_libc.capget(header, sets), "capget")
    if int.from_bytes(sets.raw[:4], "little") & 1 << _CAP_SETPCAP:
        _prctl(_PR_SET_SECUREBITS, _SECURE_BITS)
        _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL)
        for number in range(_MAX_CAPABILITIES):
            try:
                _prctl(_PR_CAPBSET_DROP, number)
            except OSError:  # EINVAL: the kernel has no more
                break
    checked(_libc.capset(header, ctypes.create_string_buffer(24)), "capset")
