"""Landlock: files, TCP, signals and abstract sockets that a process gives up for good, without any privilege.

Constants are those of linux/landlock.h; a kernel knows the rights up to its ABI version, and what it does not know it does not forbid.
Cheap to import: programs that start in milliseconds use it.
"""

from __future__ import annotations

import ctypes
import os
import stat

from banger.host.syscalls import checked, system_call

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # the same on every architecture
_VERSION = 1
_PATH_BENEATH = 1

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
REMOVE_FILE, MAKE_SOCK = 1 << 5, 1 << 9
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
_FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
"""What may be allowed on a file that is no directory."""
_FS_BITS = {1: 13, 2: 14, 3: 15, 4: 15}  # later ABIs, up to 7: 16
_TCP = 0b11  # bind, connect; ABI 4
_SCOPES = 0b11  # abstract sockets and signals of others; ABI 6


def abi() -> int:
    """The kernel's Landlock ABI version; 0 if it has none or it is switched off."""
    return max(0, system_call(_CREATE_RULESET, None, 0, _VERSION))


def fs_rights(version: int) -> int:
    """All rights to files that ABI ``version`` (1 or later) can forbid."""
    return (1 << _FS_BITS.get(version, 16)) - 1


class Ruleset:
    """Forbids all that this kernel can forbid but for what is allowed before `enforce`. ``tcp``: leave TCP alone."""

    def __init__(self, *, tcp: bool) -> None:
        """OSError if the kernel has no Landlock."""
        version = abi()
        checked(version or -1, "landlock_create_ruleset")
        self._rights = fs_rights(version)
        words = [self._rights]
        if version >= 4:
            words.append(0 if tcp else _TCP)
        if version >= 6:
            words.append(_SCOPES)
        attributes = b"".join(word.to_bytes(8, "little") for word in words)
        buffer = ctypes.create_string_buffer(attributes, len(attributes))
        self._descriptor = checked(
            system_call(_CREATE_RULESET, buffer, len(attributes), 0), "landlock_create_ruleset"
        )

    def allow(self, path: str, rights: int) -> None:
        """Allow ``rights`` to ``path`` and all beneath it, as far as the kernel knows them and they make sense there."""
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                rights &= _FILE_RIGHTS
            rule = (rights & self._rights).to_bytes(8, "little") + descriptor.to_bytes(4, "little")
            buffer = ctypes.create_string_buffer(rule, len(rule))
            checked(system_call(_ADD_RULE, self._descriptor, _PATH_BENEATH, buffer, 0), path)
        finally:
            os.close(descriptor)

    def enforce(self) -> None:
        """From here on for this process and all that come from it; new privileges must be forbidden before."""
        try:
            checked(system_call(_RESTRICT_SELF, self._descriptor, 0), "landlock_restrict_self")
        finally:
            os.close(self._descriptor)
