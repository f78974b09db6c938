"""The files that a user gives to ``image register``, looked at before anything is done with them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from banger.host import fs
from banger.images.decompress import compression
from banger.images.kernel import HEAD_BYTES, MAX_KERNEL_BYTES, check_kernel_head
from banger.model.errors import (
    CommandFailedError,
    HostLacksError,
    InvalidInputError,
    NotFoundError,
)
from banger.model.registration import Registration
from banger.model.units import format_size

MAX_INITRAMFS_BYTES = 512 << 20
_RESERVE_BYTES = 32 << 20
_DONE = {"register": "registered", "promote": "promoted"}
_NEWC = (b"070701", b"070702")  # buffer-format of Documentation/driver-api/early-userspace


def check_inputs(wish: Registration) -> None:
    """Raise NotFoundError or InvalidInputError for the first file that is missing, cannot be read or is of the wrong kind."""
    heads = {option: _head(path, option) for option, path in wish.paths.items()}
    if wish.kernel is not None:
        check_kernel_head(heads["kernel"], f"kernel {wish.kernel}")
        _check_size(wish.kernel, "kernel", MAX_KERNEL_BYTES)
    if wish.initramfs is not None:
        _check_initramfs(wish.initramfs, heads["initramfs"])


def needed_bytes(wish: Registration, directory: Path) -> int:
    """What the image will take in ``directory``, roughly: the files' data where blocks are not shared, and an extracted kernel."""
    here = directory.stat().st_dev if fs.supports_reflink(directory) else None
    found = [path.stat() for path in wish.paths.values()]
    copied = sum(one.st_blocks * 512 for one in found if one.st_dev != here)
    extracted = 5 * wish.kernel.stat().st_size if wish.kernel is not None else 0
    return copied + extracted + _RESERVE_BYTES


@contextmanager
def clear_errors(directory: Path, verb: str = "register") -> Iterator[None]:
    """What the kernel or a tool says while an image is made in ``directory``, told plainly; ``verb`` says how it is made."""
    try:
        yield
    except (OSError, CommandFailedError) as error:
        said = f"{error} {getattr(error, 'detail', '')}"
        full = isinstance(error, OSError) and error.errno in fs.FULL
        if full or any(os.strerror(number) in said for number in fs.FULL):
            raise HostLacksError(
                f"no space to {verb} an image in {directory}",
                detail=said.strip(),
                hint=f"free some, or set BANGER_STATE_DIR to another disk; see: df -h {directory}",
            ) from error
        raise HostLacksError(
            f"the image could not be {_DONE[verb]} in {directory}",
            detail=said.strip(),
            hint=f"ls -ld {directory}",
        ) from error


def _head(path: Path, option: str) -> bytes:
    """The first `HEAD_BYTES` of ``path``; empty for a directory, which only modules and an OCI layout may be."""
    what = f"{option} {path}"
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise NotFoundError(f"{what} does not exist", hint=f"ls -l {path.parent}") from None
    except PermissionError as error:
        raise InvalidInputError(
            f"{what} cannot be read by the daemon",
            detail=f"{error.strerror}; the daemon's user id is {os.geteuid()}",
            hint=f"chmod a+r {path}",
        ) from error
    except OSError as error:
        raise InvalidInputError(
            f"{what} cannot be read", detail=str(error), hint=f"ls -l {path}"
        ) from error
    try:
        found = os.fstat(descriptor)
        if stat.S_ISDIR(found.st_mode) and option in {"modules", "rootfs"}:
            return b""
        if not stat.S_ISREG(found.st_mode):
            raise InvalidInputError(f"{what} is no regular file", hint="give a file")
        if found.st_size == 0:
            raise InvalidInputError(f"{what} is empty", hint="get the file again")
        return os.pread(descriptor, HEAD_BYTES, 0)
    finally:
        os.close(descriptor)


def _check_initramfs(path: Path, head: bytes) -> None:
    if not head.startswith(_NEWC) and compression(head) is None:
        raise InvalidInputError(
            f"initramfs {path} is no cpio archive, compressed or not",
            hint="make one in the format newc, for example with: find . | cpio -o -H newc",
        )
    _check_size(path, "initramfs", MAX_INITRAMFS_BYTES)


def _check_size(path: Path, what: str, most_bytes: int) -> None:
    if path.stat().st_size > most_bytes:
        raise InvalidInputError(
            f"{what} {path} is larger than {format_size(most_bytes)}",
            hint=f"name another file than {path}",
        )
