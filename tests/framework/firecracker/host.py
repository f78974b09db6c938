"""The host's objects that a configuration opens: files, TAPs, the vsock socket; errors in the words of Rust's standard library."""

from __future__ import annotations

import errno
import os
import socket
from pathlib import Path

from banger.host.tun import VNET_HEADER, open_tap

SOCKET_PATH_BYTES = 108  # with the closing NUL: unix(7)
INTERFACE_NAME_BYTES = 16  # likewise: netdevice(7)


MUSL = {
    errno.EADDRINUSE: "Address in use", errno.EBUSY: "Resource busy", errno.EDQUOT: "Quota exceeded",
    errno.EIO: "I/O error", errno.ELOOP: "Symbolic link loop", errno.EMFILE: "No file descriptors available",
    errno.ENAMETOOLONG: "Filename too long", errno.ENOMEM: "Out of memory", errno.ENOTTY: "Not a tty",
}  # fmt: skip
"""What musl, with which Firecracker is released, says otherwise than this host's C library."""


def said(error: OSError) -> str:
    """As Rust shows an error of the operating system."""
    number = error.errno or 0
    return f"{MUSL.get(number, os.strerror(number))} (os error {number})"


def can_open(path: str, *, writable: bool = False) -> None:
    """Nothing if ``path`` can be opened; OSError."""
    os.close(os.open(path, (os.O_RDWR if writable else os.O_RDONLY) | os.O_CLOEXEC))


def open_output(path: str) -> int:
    """A log, a metrics file or a console: made if it is not there, neither truncated nor appended to, and a FIFO does not block."""
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)


def size_bytes(path: str) -> int:
    """The size of a file or block device; OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return os.lseek(descriptor, 0, os.SEEK_END)
    finally:
        os.close(descriptor)


def tap(name: str) -> int:
    """The TAP ``name``, made where it does not exist and that is allowed; ValueError holds Firecracker's words for why not."""
    if len(name.encode()) >= INTERFACE_NAME_BYTES:
        raise ValueError("Invalid interface name")
    try:
        return open_tap(name, flags=VNET_HEADER)
    except OSError as error:
        if not os.access("/dev/net/tun", os.R_OK | os.W_OK):
            raise ValueError(f"Couldn't open /dev/net/tun: {said(error)}") from error
        raise ValueError(
            f"Error while creating ifreq structure: {said(error)}. Invalid TUN/TAP Backend provided by {name}. "
            "Check our documentation on setting up the network devices."
        ) from error


def listen(path: str) -> socket.socket:
    """A Unix socket that listens at ``path``; ValueError says why not."""
    if len(os.fsencode(path)) >= SOCKET_PATH_BYTES:
        raise ValueError("path must be shorter than SUN_LEN")
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(path)
        listener.listen(128)  # Rust's backlog
        listener.setblocking(False)
    except OSError as error:
        listener.close()
        raise ValueError(said(error)) from error
    return listener


def starts_with(path: str, magic: bytes) -> bool:
    """Whether a file begins so."""
    with Path(path).open("rb") as file:
        return file.read(len(magic)) == magic
