"""The download cache: packages by their SHA-256, kept between builds. One build writes it at a time; what is in it is whole or goes.

A file gets its name by one link (or rename), so a killed build leaves whole files or ``.part`` ones, which the next use removes.
Whoever takes a file out compares its digest again (`banger.images.fill_archives`).
"""

from __future__ import annotations

import hashlib
import re
from contextlib import suppress
from pathlib import Path

from banger.host import fs
from banger.images.fill_archives import place
from banger.model.units import GIB

MOST_BYTES = 4 * GIB
_NAME = re.compile(r"[0-9a-f]{64}", re.ASCII)


class Downloads:
    """The cache in ``directory``, which is made when something is put in."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def prepare(self) -> Path:
        """Make the directory, and remove what a killed build left half-written."""
        fs.make_private_dir(self.directory)
        for path in self.directory.iterdir():
            if not _NAME.fullmatch(path.name):
                path.unlink(missing_ok=True)
        return self.directory

    def collect(self, directory: Path, suffix: str) -> int:
        """Take in the whole files of ``directory`` that end so; what is too much then goes, the longest unused first. How many are new."""
        self.prepare()
        new = 0
        for path in sorted(directory.glob(f"*{suffix}")):
            if path.is_symlink() or not path.is_file():
                continue
            with path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            with suppress(FileExistsError):
                place(path, self.directory / digest)
                new += 1
        self.trim(MOST_BYTES)
        return new

    def trim(self, most_bytes: int) -> None:
        """Remove the longest unused until at most ``most_bytes`` are left."""
        found = sorted(self._files(), key=lambda item: item[1], reverse=True)
        total = 0
        for path, _, size_bytes in found:
            total += size_bytes
            if total > most_bytes:
                path.unlink(missing_ok=True)

    def _files(self) -> list[tuple[Path, int, int]]:
        """Path, time of last use, bytes on disk."""
        found = []
        if self.directory.is_dir():
            for path in self.directory.iterdir():
                with suppress(FileNotFoundError):
                    status = path.stat()
                    found.append((path, status.st_mtime_ns, status.st_blocks * 512))
        return found

    def count(self) -> int:
        """How many files it has."""
        return len(self._files())

    def size_bytes(self) -> int:
        """What it takes on disk."""
        return sum(size_bytes for _, _, size_bytes in self._files())

    def clear(self) -> None:
        """Remove all; a build that runs takes what it still misses from its mirror."""
        for path, _, _ in self._files():
            path.unlink(missing_ok=True)
