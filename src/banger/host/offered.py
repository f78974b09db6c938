"""Files that somebody else hands us as descriptors, to be put behind loop devices. A descriptor may be anything, and its sender keeps it.

- Before anything else is asked of it, /proc says on which of the host's mounts it is; only file systems of the kernel's own are taken.
  A file of FUSE answers even fstat(2) from a user's program, and one behind a loop device would let the kernel wait for that.
- It is opened again. The open file itself stays the sender's, who could switch it to O_APPEND later, so that writes go elsewhere.
- Opening never waits: a sender may hold a lease on it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from banger.host.loop import Backing
from banger.model.errors import InvalidInputError, RefusedError

FILE_SYSTEMS: Final = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"}
)
_FACTS_BYTES: Final = (
    256  # pos, flags and mnt_id come first; what follows is as long as a sender likes
)
_MOUNTS: Final = (Path("/proc/self/mountinfo"), Path("/proc/1/mountinfo"))
"""The second for a service whose mounts are its own copies of the host's."""


@dataclass(frozen=True, slots=True)
class Offered:
    """Our own descriptor of a regular file that was handed over, and what it was when we looked."""

    descriptor: int
    backing: Backing
    size_bytes: int


@contextmanager
def taken(descriptor: int, what: str, *, owner: int | None = None) -> Iterator[Offered]:
    """The regular file behind ``descriptor``, for the time of the block, as ours: to be read, and with ``owner``, whose it must be, to be
    written too. The descriptor must be open for that. InvalidInputError or RefusedError, which call it ``what``, if it is not so.
    """
    flags, mount = _known_to_proc(descriptor)
    wanted = {os.O_RDONLY, os.O_RDWR} if owner is None else {os.O_RDWR}
    if flags & os.O_PATH or flags & os.O_ACCMODE not in wanted:
        mode = "reading" if owner is None else "reading and writing"
        raise InvalidInputError(f"{what} is not open for {mode}", hint="open it so, and pass that")
    _check_mount(mount, what)
    ours = _open_again(descriptor, what, os.O_RDONLY if owner is None else os.O_RDWR)
    try:
        found = os.fstat(ours)
        if owner is not None and found.st_uid != owner:
            raise RefusedError(
                f"{what} is not user {owner}'s", detail=f"it is user {found.st_uid}'s", hint="id -u"
            )
        if found.st_nlink == 0:
            raise RefusedError(f"{what} was deleted", hint="make it anew")
        yield Offered(ours, Backing(found.st_dev, found.st_ino), found.st_size)
    finally:
        os.close(ours)


def _known_to_proc(descriptor: int) -> tuple[int, int]:
    """Flags and mount of an open file, as the kernel has them: nobody else is asked."""
    with Path(f"/proc/self/fdinfo/{descriptor}").open("rb") as file:
        head = file.read(_FACTS_BYTES).decode(errors="replace")
    facts = dict(line.split(":", 1) for line in head.splitlines() if ":" in line)
    return int(facts["flags"], 8), int(facts["mnt_id"])


def _check_mount(number: int, what: str) -> None:
    kind = next((found for path in _MOUNTS if (found := _kind_of(number, path))), None)
    if kind is None:
        raise RefusedError(
            f"{what} is on no file system of this host",
            detail="it is a pipe, a socket, or in a mount namespace of somebody's own",
            hint="pass a file of the state directory",
        )
    if kind not in FILE_SYSTEMS:
        raise RefusedError(
            f"{what} is on a file system that no device is made of",
            detail=f"it is {kind[:40]}; there are: {', '.join(sorted(FILE_SYSTEMS))}",
            hint="move the state directory: set BANGER_STATE_DIR",
        )


def _kind_of(number: int, mounts: Path) -> str | None:
    """The type of mount ``number`` (proc_pid_mountinfo(5)); None if it is not among ``mounts``."""
    for line in mounts.read_text(errors="replace").splitlines():
        left, _, right = line.partition(" - ")
        if left.split()[0] == str(number):
            return right.split()[0]
    return None


def _open_again(descriptor: int, what: str, mode: int) -> int:
    """Checked before it is opened: opening a pipe or a device does something."""
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        raise InvalidInputError(f"{what} is no regular file", hint="pass a file")
    flags = mode | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        return os.open(f"/proc/self/fd/{descriptor}", flags)
    except BlockingIOError as error:
        raise RefusedError(
            f"{what} is in use", detail="somebody holds a lease on it", hint="lslocks"
        ) from error
