"""Whose a network namespace is that somebody else hands us as a descriptor. The descriptor may be anything: nothing is done with it that
could wait for whoever made it (a file of FUSE answers even fstat(2) from a user's program).
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
from dataclasses import dataclass
from pathlib import Path

from banger.host.syscalls import CLONE_NEWNET
from banger.model.errors import InvalidInputError, RefusedError

_NS_GET_USERNS, _NS_GET_NSTYPE, _NS_GET_OWNER_UID = 0xB701, 0xB703, 0xB704  # linux/nsfs.h
_NAME = re.compile(r"net:\[\d+\]")


@dataclass(frozen=True, slots=True)
class NamespaceId:
    """Which namespace it is, as long as it lives: device and inode of its file."""

    device: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> NamespaceId:
        """That of an open namespace."""
        status = os.fstat(descriptor)
        return cls(status.st_dev, status.st_ino)


def is_network_namespace(descriptor: int) -> bool:
    """Whether it is one: by its name, which the kernel makes up for namespaces and no path can have, before anything else is asked."""
    name = str(Path(f"/proc/self/fd/{descriptor}").readlink())
    if not _NAME.fullmatch(name):
        return False
    try:
        return fcntl.ioctl(descriptor, _NS_GET_NSTYPE) == CLONE_NEWNET
    except OSError:  # opened with O_PATH: good for nothing
        return False


def check_owner(descriptor: int, uid: int) -> NamespaceId:
    """The namespace's id if it is a network namespace that belongs to a user namespace of ``uid``'s making; RefusedError if not.

    The one that we run in, and all that belong to our own user namespace, are the host's and never a guest network.
    """
    if not is_network_namespace(descriptor):
        raise InvalidInputError(
            "the descriptor is no network namespace", hint="pass one of /proc/PID/ns/net"
        )
    found = NamespaceId.of(descriptor)
    try:
        owner_namespace = fcntl.ioctl(descriptor, _NS_GET_USERNS)
    except OSError as error:
        raise _not_yours(found, uid, error.strerror or str(error)) from error
    try:
        if NamespaceId.of(owner_namespace) == _own_user_namespace():
            raise _not_yours(found, uid, "it belongs to the host's own user namespace")
        owner = _owner_uid(owner_namespace)
    finally:
        os.close(owner_namespace)
    if owner != uid:
        raise _not_yours(found, uid, f"its user namespace was made by user {owner}")
    return found


def _owner_uid(user_namespace: int) -> int:
    answer = bytearray(4)
    fcntl.ioctl(user_namespace, _NS_GET_OWNER_UID, answer)
    return int(struct.unpack("=I", answer)[0])


def _own_user_namespace() -> NamespaceId:
    status = Path("/proc/thread-self/ns/user").stat()
    return NamespaceId(status.st_dev, status.st_ino)


def _not_yours(found: NamespaceId, uid: int, why: str) -> RefusedError:
    return RefusedError(
        f"network namespace {found.inode} is not user {uid}'s", detail=why, hint="id -u"
    )
