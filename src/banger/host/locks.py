"""A lock that dies with its holder: flock(2) on a file that is never removed."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from banger.model.errors import RefusedError


class FileLock:
    """An exclusive lock on ``path``; the kernel frees it when the process ends, however it ends."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._descriptor: int | None = None

    def acquire(self) -> bool:
        """Take the lock without waiting; False if another process has it."""
        descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return False
        except BaseException:
            os.close(descriptor)
            raise
        try:
            os.ftruncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()}\n".encode())
        except BaseException:  # a full disk
            os.close(descriptor)
            raise
        self._descriptor = descriptor
        return True

    def take_service(self, what: str) -> None:
        """Take the lock as the one process of this host that keeps ``what``; RefusedError if another does."""
        if not self.acquire():
            raise RefusedError(
                f"{what} of this host are another process's",
                detail=f"process {self.holder()} has {self._path.parent}",
                hint="use that one: set helper_socket, or end it",
            )

    def holder(self) -> str:
        """The pid that the present or last holder wrote; for messages only."""
        try:
            return self._path.read_text().strip()
        except FileNotFoundError:
            return ""

    def release(self) -> None:
        """Give the lock back; nothing happens if it is not held."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
