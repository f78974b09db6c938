"""TAP devices. Standard library only and cheap to import: the network's holder uses it."""

from __future__ import annotations

import fcntl
import os
import struct
from typing import Final

VNET_HEADER: Final = 0x4000  # IFF_VNET_HDR: QEMU wants it, an uplink program does not
_IFF_TAP, _IFF_NO_PI = 0x0002, 0x1000
_TUNSETIFF, _TUNSETPERSIST = 0x400454CA, 0x400454CB  # linux/if_tun.h


def open_tap(name: str, *, flags: int = 0, persist: bool = False) -> int:
    """A descriptor of a new TAP called ``name`` in this thread's network namespace; OSError says why not.

    The TAP is gone with its last descriptor, or, with ``persist``, with its namespace.
    """
    descriptor = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK)
    try:
        request = struct.pack("=16sH22x", name.encode(), _IFF_TAP | _IFF_NO_PI | flags)
        fcntl.ioctl(descriptor, _TUNSETIFF, request)
        if persist:
            fcntl.ioctl(descriptor, _TUNSETPERSIST, 1)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor
