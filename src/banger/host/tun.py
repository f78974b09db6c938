"""TAP devices. Standard library only and cheap to import: the network's holder uses it."""

from __future__ import annotations

import fcntl
import os
import struct

VNET_HEADER = 0x4000  # IFF_VNET_HDR: QEMU wants it, an uplink program does not
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_TUNSETIFF, _TUNSETPERSIST, _TUNSETOWNER = 0x400454CA, 0x400454CB, 0x400454CC  # linux/if_tun.h


def open_tap(name: str, *, flags: int = 0, persist: bool = False) -> int:
    """A descriptor of a new TAP called ``name`` in this thread's network namespace; OSError says why not.

    The TAP is gone with its last descriptor, or, with ``persist``, with its namespace.
    """
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        _attach(descriptor, name, flags)
        if persist:
            fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def end_with_descriptor(descriptor: int) -> None:
    """Let the persistent TAP that ``descriptor`` has open go with its last descriptor, as one that never was persistent."""
    fcntl.ioctl(descriptor, _TUNSETPERSIST, 0)


def give_tap(name: str, uid: int) -> None:
    """Let nobody but user ``uid``, and who has CAP_NET_ADMIN there, open the persistent TAP ``name`` of this thread's network namespace.

    ``uid`` is a number of this thread's user namespace. OSError says why not.
    """
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    try:
        _attach(descriptor, name, 0)
        fcntl.ioctl(descriptor, _TUNSETOWNER, uid)
    finally:
        os.close(descriptor)


def _attach(descriptor: int, name: str, flags: int) -> None:
    request = struct.pack("=16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | flags)
    fcntl.ioctl(descriptor, _TUNSETIFF, request)
