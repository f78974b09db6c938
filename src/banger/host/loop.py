"""Loop devices, by ioctls (linux/loop.h). For root.

A device is made with *autoclear*: it is there as long as somebody has it open, and the kernel lets go of its file with the last one. Whoever
makes one holds it open until something else does (a mapping of the device mapper); if the maker is killed in between, nothing is left.
A device is known by the file behind it (device and inode), never by its number, which is used again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banger.model.errors import HostLacksError

_CLEAR, _GET_STATUS, _SET_CAPACITY, _CONFIGURE = 0x4C01, 0x4C05, 0x4C07, 0x4C0A
_GET_FREE = 0x4C82
_READ_ONLY, _AUTOCLEAR = 1, 4
_INFO = struct.Struct("=5Q4I64s64s32s2Q")  # struct loop_info64
_CONFIG = struct.Struct(f"=II{_INFO.size}s64x")  # struct loop_config
_CONTROL = "/dev/loop-control"
_SYS = Path("/sys/block")
_NAME_BYTES, _SECTOR_BYTES = 63, 512
_TRIES = 64  # others take free devices too
_NOT_BOUND = {errno.ENXIO, errno.ENODEV, errno.ENOENT}


@dataclass(frozen=True, slots=True)
class Backing:
    """The file behind a loop device."""

    device: int
    inode: int

    @classmethod
    def of(cls, descriptor: int) -> Backing:
        """Of an open file."""
        found = os.fstat(descriptor)
        return cls(found.st_dev, found.st_ino)


@dataclass(frozen=True, slots=True)
class Loop:
    """An open loop device: ``descriptor`` keeps it until something else has it open."""

    path: Path
    descriptor: int


@contextmanager
def held(file: Path, *, read_only: bool, shared: bool = False) -> Iterator[Loop]:
    """A loop device over ``file`` for the time of the block, and beyond it if something else has it open then.

    ``shared``: one that is there already will do. HostLacksError if there is none to be had.
    """
    flags = os.O_RDONLY if read_only else os.O_RDWR
    backing = os.open(file, flags | os.O_CLOEXEC)
    try:
        loop = (_find_shared(backing) if shared else None) or _attach(
            backing, read_only=read_only, name=os.fspath(file)
        )
    finally:
        os.close(backing)
    try:
        yield loop
    finally:
        os.close(loop.descriptor)


@contextmanager
def held_over(
    backing: int, name: str, *, read_only: bool, limit_bytes: int = 0, shared: bool = False
) -> Iterator[Loop]:
    """As `held`, over the open file ``backing``, which the kernel uses with the mode that it was opened with.

    The device is called ``name``, and only one of this name is ``shared``. It never gets larger than ``limit_bytes`` (0: no limit),
    however large the file becomes.
    """
    loop = (_find_shared(backing, name) if shared else None) or _attach(
        backing, read_only=read_only, name=name, limit_bytes=limit_bytes
    )
    try:
        yield loop
    finally:
        os.close(loop.descriptor)


def _attach(backing: int, *, read_only: bool, name: str, limit_bytes: int = 0) -> Loop:
    flags = _AUTOCLEAR | (_READ_ONLY if read_only else 0)
    info = _INFO.pack(
        0, 0, 0, 0, limit_bytes, 0, 0, 0, flags, os.fsencode(name)[:_NAME_BYTES], b"", b"", 0, 0
    )
    config = _CONFIG.pack(backing, 0, info)
    try:
        for _ in range(_TRIES):
            device = _open_free()
            try:
                fcntl.ioctl(device.descriptor, _CONFIGURE, config)
            except OSError as error:
                os.close(device.descriptor)
                if error.errno != errno.EBUSY:
                    raise
            else:
                return device
    except OSError as error:
        raise HostLacksError(
            f"no loop device for {name}",
            detail=error.strerror or str(error),
            hint="sudo modprobe loop",
        ) from error
    raise HostLacksError(
        f"no loop device for {name}",
        detail="others took every one that was free",
        hint="losetup --list",
    )


def _open_free() -> Loop:
    control = os.open(_CONTROL, os.O_RDWR | os.O_CLOEXEC)
    try:
        path = Path(f"/dev/loop{fcntl.ioctl(control, _GET_FREE)}")
    finally:
        os.close(control)
    return Loop(path, os.open(path, os.O_RDWR | os.O_CLOEXEC))


def _find_shared(file: int, called: str | None = None) -> Loop | None:
    """One of banger's kind over the whole of this open file, to read only; it stays while it is open. ``called``: what it must be called."""
    backing, sectors = Backing.of(file), os.fstat(file).st_size // _SECTOR_BYTES
    for name in _bound():
        found = _opened(name)
        if found is None:
            continue
        loop, info = found
        offset, limit, flags = info[3], info[4], info[8]
        whole = offset == limit == 0 and flags & (_READ_ONLY | _AUTOCLEAR) == 5
        ours = called is None or info[9].rstrip(b"\0") == os.fsencode(called)[:_NAME_BYTES]
        if _backing(info) == backing and whole and ours and _sectors(loop) == sectors:
            return loop
        os.close(loop.descriptor)
    return None


def _sectors(loop: Loop) -> int:
    return os.lseek(loop.descriptor, 0, os.SEEK_END) // _SECTOR_BYTES


def _bound() -> list[str]:
    return sorted(path.parts[-3] for path in _SYS.glob("loop*/loop/backing_file"))


def _opened(name: str) -> tuple[Loop, tuple[Any, ...]] | None:
    """The device and its struct loop_info64; None if it is bound no more."""
    path = Path("/dev") / name
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in _NOT_BOUND:
            return None
        raise
    try:
        return Loop(path, descriptor), _status(descriptor)
    except OSError as error:
        os.close(descriptor)
        if error.errno in _NOT_BOUND:
            return None
        raise


def _status(descriptor: int) -> tuple[Any, ...]:
    answer = bytearray(_INFO.size)
    fcntl.ioctl(descriptor, _GET_STATUS, answer)
    return _INFO.unpack(answer)


def _backing(info: tuple[Any, ...]) -> Backing:
    return Backing(info[0], info[1])


def backing_of(device: Path) -> Backing | None:
    """The file behind the loop device ``device``; None if there is none."""
    found = _opened(device.name)
    if found is None:
        return None
    loop, info = found
    os.close(loop.descriptor)
    return _backing(info)


def over(backing: Backing) -> list[Path]:
    """The loop devices over this file."""
    return [Path("/dev") / name for name in _bound() if backing_of(Path(name)) == backing]


def adopt_size(device: Path, backing: Backing) -> None:
    """Tell ``device`` that its file has grown; FileNotFoundError if the device is over another one by now."""
    descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
    try:
        if _backing(_status(descriptor)) != backing:
            raise FileNotFoundError(errno.ENOENT, "over another file", str(device))
        fcntl.ioctl(descriptor, _SET_CAPACITY)
    finally:
        os.close(descriptor)


def detach(device: Path, backing: Backing) -> None:
    """Take the file from ``device``, once nobody has it open; one that is gone, or over another file, is left alone."""
    with suppress(FileNotFoundError):
        descriptor = os.open(device, os.O_RDWR | os.O_CLOEXEC)
        try:
            if _backing(_status(descriptor)) == backing:
                fcntl.ioctl(descriptor, _CLEAR)
        except OSError as error:
            if error.errno not in _NOT_BOUND:
                raise
        finally:
            os.close(descriptor)
