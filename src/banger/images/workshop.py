"""Where images are made: one at a time, in ``images/.build-<random>``, which becomes the image by one rename at the end."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

from banger.host import fs
from banger.host.locks import FileLock
from banger.host.threads import in_thread
from banger.host.undo import UndoStack
from banger.images.sandbox import remove_mapped
from banger.images.seal import MANIFEST
from banger.model.clock import Deadline
from banger.model.errors import HostLacksError, RefusedError
from banger.model.ids import is_id
from banger.model.manifest import ImageManifest
from banger.model.units import format_size

_PREFIX = ".build-"
_UNDO_S = 330.0
_PATIENCE_S = 2.0  # a work seed that is renewed is through by then
_LOOK_S = 0.05


class Workshop:
    """The workshop of the images in ``directory``."""

    def __init__(self, directory: Path) -> None:
        self._dir = directory

    async def make(
        self,
        needed_bytes: int,
        fill: Callable[[Path], Awaitable[ImageManifest]],
        placed: Callable[[ImageManifest], None],
    ) -> ImageManifest:
        """The image that ``fill`` makes in the empty directory it is given; if it fails or is cancelled, nothing is left.

        ``placed`` is called when it is there, before another one can be made. RefusedError while another one is made; HostLacksError if
        fewer than ``needed_bytes`` are free.
        """
        async with self.hold(_PATIENCE_S):
            await self._sweep()
            self._check_space(needed_bytes)
            async with self._scratch() as (work, undo):
                manifest = await fill(work)
                await self._place(work, manifest)
                undo.release()
            placed(manifest)
            return manifest

    @asynccontextmanager
    async def bench(self, wait_s: float) -> AsyncIterator[Path]:
        """An empty directory beside the images, removed at the end, for work on one that is there; nobody else makes one meanwhile."""
        async with self.hold(wait_s), self._scratch() as (work, _):
            yield work

    @asynccontextmanager
    async def hold(self, wait_s: float) -> AsyncIterator[None]:
        """Be the only one who makes or changes images here; RefusedError if somebody else still does after ``wait_s``."""
        fs.make_private_dir(self._dir)
        lock, deadline = FileLock(self._dir / ".lock"), Deadline.after(wait_s)
        while not lock.acquire():
            if deadline.passed:
                raise RefusedError("another image build is running", hint="banger op list")
            await asyncio.sleep(_LOOK_S)  # flock offers no wait with a deadline
        try:
            yield
        finally:
            lock.release()

    @asynccontextmanager
    async def _scratch(self) -> AsyncIterator[tuple[Path, UndoStack]]:
        """A directory that is removed at the end unless the stack is released."""
        work = self._dir / f"{_PREFIX}{secrets.token_hex(4)}"
        async with UndoStack() as undo:
            work.mkdir(mode=0o700)
            undo.push(
                "remove the unfinished image", lambda: remove_mapped(work), deadline_s=_UNDO_S
            )
            yield work, undo

    def _check_space(self, needed_bytes: int) -> None:
        free = fs.free_bytes(self._dir)
        if free < needed_bytes:
            raise HostLacksError(
                f"no space to build an image in {self._dir}",
                detail=f"{format_size(free)} are free, {format_size(needed_bytes)} are needed",
                hint=f"free some, or set BANGER_STATE_DIR to another disk; see: df -h {self._dir}",
            )

    async def _place(self, work: Path, manifest: ImageManifest) -> None:
        target = self._dir / manifest.id
        if not _rename(work, target):
            await in_thread(_mend, work, target, manifest)
            await remove_mapped(work)

    async def sweep(self) -> None:
        """Remove what interrupted builds and deletions left, unless a build is running now; idempotent."""
        lock = FileLock(self._dir / ".lock")
        if not self._dir.is_dir() or not lock.acquire():
            return
        try:
            await self._sweep()
        finally:
            lock.release()

    def leftovers(self) -> list[tuple[Path, int]]:
        """What `sweep` would remove, and the bytes that it takes; nothing while a build is running."""
        lock = FileLock(self._dir / ".lock")
        if not self._dir.is_dir() or not lock.acquire():
            return []
        try:
            paths = [*self._dir.glob(f"{_PREFIX}*"), *self._unsealed()]
            return [(path, _tree_bytes(path)) for path in sorted(paths)]
        finally:
            lock.release()

    def half_deleted(self) -> list[str]:
        """Ids of images whose deletion was interrupted, or is under way."""
        return [path.name for path in self._unsealed()] if self._dir.is_dir() else []

    def _unsealed(self) -> list[Path]:
        """Images without a manifest: their deletion was interrupted."""
        return [
            path
            for path in self._dir.iterdir()
            if is_id(path.name) and not (path / MANIFEST).exists()
        ]

    async def _sweep(self) -> None:
        """As `sweep`; the caller holds the lock."""
        for path in self._dir.glob(f"{_PREFIX}*"):
            await remove_mapped(path)
        for path in self._unsealed():
            await asyncio.to_thread(fs.remove_tree, path)


def _tree_bytes(path: Path) -> int:
    return sum(fs.allocated_bytes(below) for below in path.rglob("*") if not below.is_symlink())


def _rename(work: Path, target: Path) -> bool:
    """Make ``work`` the image ``target``; False if the very same image is there already."""
    if target.exists():
        return False
    work.chmod(0o755)
    work.rename(target)
    return True


def _mend(work: Path, target: Path, manifest: ImageManifest) -> None:
    """Replace what is damaged in ``target``; what is whole stays, as VMs may run over it. Only the manifest is always newer."""
    for name, entry in manifest.files.items():
        file = target / name
        if not (file.is_file() and fs.sparse_digest(file) == entry.digest):
            (work / name).replace(file)
    (work / MANIFEST).replace(target / MANIFEST)
