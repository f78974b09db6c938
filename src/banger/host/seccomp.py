"""System calls that no VMM makes and an intruder would: refused by a filter (seccomp(2)) that every process to come inherits.

A list of what is forbidden, not of what is allowed: the VMM's own, tighter filter comes on top. Numbers are those of asm/unistd_64.h and
asm-generic/unistd.h. Cheap to import: programs that start in milliseconds use it.
"""

from __future__ import annotations

import ctypes
import os
import struct

from banger.host.syscalls import set_filter

EPERM, ENOSYS = 1, 38
FORBIDDEN = {  # name: number on x86_64, on aarch64; 0: not there
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_setup": (425, 425),
    "ioperm": (173, 0),
    "iopl": (172, 0),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "mknod": (133, 0),
    "mknodat": (259, 33),
    "modify_ldt": (154, 0),
    "mount": (165, 40),
    "mount_setattr": (442, 442),
    "move_mount": (429, 429),
    "name_to_handle_at": (303, 264),
    "open_by_handle_at": (304, 265),
    "open_tree": (428, 428),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_madvise": (440, 440),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "umount2": (166, 39),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
}
_CLONE, _CLONE3, _IOCTL = (56, 220), (435, 435), (16, 29)
_ARCHITECTURES = {
    "x86_64": (0, 0xC000003E),
    "aarch64": (1, 0xC00000B7),
}  # column above, AUDIT_ARCH_…
_NEW_NAMESPACES = 0x7E020000  # CLONE_NEWNS, CGROUP, UTS, IPC, USER, PID, NET
_SOCKET_IOCTLS, _IOCTL_TYPE = (
    0x8900,
    0xFF00,
)  # linux/sockios.h: they tell of the network that a socket was made in
_X32 = 0x40000000
_NUMBER_AT, _ARCHITECTURE_AT, _ARGUMENTS_AT = 0, 4, 16  # struct seccomp_data
_LOAD, _EQUAL, _AT_LEAST, _ANY_BIT, _AND, _RETURN = (
    0x20,
    0x15,
    0x35,
    0x45,
    0x54,
    0x06,
)  # linux/bpf_common.h
_ALLOW, _ERRNO, _KILL = 0x7FFF0000, 0x00050000, 0x80000000  # linux/seccomp.h: SECCOMP_RET_…


class Filter:
    """A program for the kernel, put together rule by rule."""

    def __init__(self, machine: str) -> None:
        """``machine`` as of uname(2); KeyError if its system calls are not known here."""
        self._column, architecture = _ARCHITECTURES[machine]
        self._code: list[tuple[int, int, int, int]] = [
            (_LOAD, 0, 0, _ARCHITECTURE_AT),
            (_EQUAL, 1, 0, architecture),
            (_RETURN, 0, 0, _KILL),
            (_LOAD, 0, 0, _NUMBER_AT),
        ]
        if machine == "x86_64":
            self._answer((_AT_LEAST, 0, 1, _X32), ENOSYS)

    def _answer(self, test: tuple[int, int, int, int], errno: int) -> None:
        self._code += [test, (_RETURN, 0, 0, _ERRNO | errno)]

    def deny(self, numbers: tuple[int, int], errno: int = EPERM) -> None:
        """The system call fails with ``errno``."""
        if numbers[self._column]:
            self._answer((_EQUAL, 0, 1, numbers[self._column]), errno)

    def deny_where(
        self, numbers: tuple[int, int], argument: int, code: list[tuple[int, int, int, int]]
    ) -> None:
        """It fails where ``code``, which sees the low half of ``argument`` and ends in a test, finds it true."""
        skipped = len(code) + 3
        low = _ARGUMENTS_AT + 8 * argument
        self._code += [
            (_EQUAL, 0, skipped, numbers[self._column]),
            (_LOAD, 0, 0, low),
            *code,
            (_RETURN, 0, 0, _ERRNO | EPERM),
            (_LOAD, 0, 0, _NUMBER_AT),
        ]

    def program(self) -> bytes:
        """Instructions as struct sock_filter."""
        return b"".join(
            struct.pack("=HBBI", *line) for line in [*self._code, (_RETURN, 0, 0, _ALLOW)]
        )


def program(machine: str, *, socket_ioctls: bool) -> bytes:
    """What no VMM may do on this ``machine``; with ``socket_ioctls`` it may ask about the network of its sockets."""
    made = Filter(machine)
    for numbers in FORBIDDEN.values():
        made.deny(numbers)
    made.deny(_CLONE3, ENOSYS)  # its flags cannot be seen; the C library goes on with clone
    made.deny_where(_CLONE, 0, [(_ANY_BIT, 0, 1, _NEW_NAMESPACES)])
    if not socket_ioctls:
        same_type = [(_AND, 0, 0, _IOCTL_TYPE), (_EQUAL, 0, 1, _SOCKET_IOCTLS)]
        made.deny_where(_IOCTL, 1, same_type)
    return made.program()


def install(*, socket_ioctls: bool) -> None:
    """Filter this process's system calls for good. OSError if the kernel or the machine has no filters."""
    machine = os.uname().machine
    if machine not in _ARCHITECTURES:
        raise OSError(ENOSYS, f"system calls of {machine} are not known")
    load(program(machine, socket_ioctls=socket_ioctls))


def load(code: bytes) -> None:
    """Filter this process's system calls by ``code`` too; new privileges must be forbidden before."""
    buffer = ctypes.create_string_buffer(code, len(code))
    set_filter(struct.pack("@HP", len(code) // 8, ctypes.addressof(buffer)))
