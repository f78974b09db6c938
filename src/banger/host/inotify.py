"""Files that change, told by the kernel (inotify(7)) instead of looked at again and again.

One inotify descriptor serves all watches of an event loop, because a user may have few of them (128 by default).
"""

from __future__ import annotations

import asyncio
import ctypes
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final
from weakref import WeakKeyDictionary

_MODIFY, _MOVED_TO, _CREATE, _IGNORED = 0x2, 0x80, 0x100, 0x8000  # linux/inotify.h
_EVENT: Final = struct.Struct("=iIII")  # watch, mask, cookie, length of the name that follows
_READ_BYTES = 64 * 1024
_libc: Final = ctypes.CDLL(None, use_errno=True)


class _Watches:
    """The watches of one event loop; its descriptor is open while there are any."""

    def __init__(self) -> None:
        self._descriptor = -1
        self._events: dict[int, set[asyncio.Event]] = {}

    def add(self, path: Path, event: asyncio.Event) -> int:
        """Begin to watch; the number of the watch, OSError if the kernel does not let us."""
        if self._descriptor < 0:
            self._descriptor = _checked(_libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
            asyncio.get_running_loop().add_reader(self._descriptor, self._read)
        try:
            mask = _MODIFY | _MOVED_TO | _CREATE
            watch = _checked(_libc.inotify_add_watch(self._descriptor, os.fsencode(path), mask))
        except OSError:
            self._rest()
            raise
        self._events.setdefault(watch, set()).add(event)
        return watch

    def remove(self, watch: int, event: asyncio.Event) -> None:
        """Watch no longer on behalf of ``event``."""
        listeners = self._events.get(watch)
        if listeners is not None:
            listeners.discard(event)
            if not listeners:
                del self._events[watch]
                _libc.inotify_rm_watch(self._descriptor, watch)
        self._rest()

    def _rest(self) -> None:
        if not self._events and self._descriptor >= 0:
            asyncio.get_running_loop().remove_reader(self._descriptor)
            os.close(self._descriptor)
            self._descriptor = -1

    def _read(self) -> None:
        data = b""
        with suppress(BlockingIOError):
            data = os.read(self._descriptor, _READ_BYTES)
        position = 0
        while position < len(data):
            watch, mask, _, name_bytes = _EVENT.unpack_from(data, position)
            position += _EVENT.size + name_bytes
            for event in self._events.get(watch, ()):
                event.set()
            if mask & _IGNORED:  # the file has gone, and the watch with it
                self._events.pop(watch, None)


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result


_of_loop: WeakKeyDictionary[asyncio.AbstractEventLoop, _Watches] = WeakKeyDictionary()


@contextmanager
def watching(path: Path) -> Iterator[asyncio.Event]:
    """An event that is set whenever the file ``path`` is written to, or something appears in the directory ``path``.

    It stays unset if the kernel cannot watch (no more watches, no such file): who waits for it sets a deadline and then looks.
    """
    event = asyncio.Event()
    watches = _of_loop.setdefault(asyncio.get_running_loop(), _Watches())
    try:
        watch = watches.add(path, event)
    except OSError:
        yield event
        return
    try:
        yield event
    finally:
        watches.remove(watch, event)
