"""What takes room (`DiskUsage`), and what of it nothing uses (`Leftover`) and may go.

What may go is decided anew when it is removed: between the list and the removal a VM may have come to use it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from banger.engine.engine import Engine
from banger.engine.image_work import ImageWork
from banger.host import fs
from banger.model import clock
from banger.model.errors import BangerError
from banger.model.ids import is_id
from banger.model.machine import VmPaths
from banger.model.record import ErrorRecord
from banger.model.usage import DiskUsage, Leftover, LeftoverKind, Owner

log = logging.getLogger(__name__)
OLD_S = 24 * 3600.0
_CORRUPT = "banger.db.corrupt-"
_OWN_FILES = frozenset(
    value.name
    for value in (
        getattr(VmPaths(Path("/x"), Path("/x")), name)
        for name in dir(VmPaths)
        if isinstance(getattr(VmPaths, name), property)
    )
    if isinstance(value, Path)
)


@dataclass(frozen=True, slots=True)
class Wish:
    """What to remove beside what is of no use to anybody: ``images`` of no VM, damaged ``databases`` that were kept aside."""

    images: bool = False
    databases: bool = False


@dataclass(frozen=True, slots=True)
class Pruned:
    """A leftover and what became of it; ``error`` if it could not be removed."""

    leftover: Leftover
    removed: bool
    error: ErrorRecord | None = None


class Cleaning:
    """For one daemon. ``default_image`` is never a leftover."""

    def __init__(self, engine: Engine, image_work: ImageWork, default_image: str) -> None:
        self._engine = engine
        self._context = engine.context
        self._image_work = image_work
        self._default_image = default_image

    async def usage(self) -> DiskUsage:
        """Of VMs, images and the rest; see `engine.ports.Storage.usage`."""
        places = self._context.places.state_dir
        owners = {
            places / "images" / image.id: Owner("image", image.id, image.name)
            for image in self._context.images.list()
        }
        for machine in self._engine.machines():
            owners[machine.paths.state] = Owner("vm", machine.id, machine.name)
        return await self._context.storage.usage(places, owners)

    async def prune(self, wish: Wish, *, dry_run: bool) -> list[Pruned]:
        """Remove what nothing uses, or with ``dry_run`` only say it; what cannot be removed does not keep the rest."""
        done = []
        for leftover, remove in await self._leftovers(wish):
            error = None
            if not dry_run:
                try:
                    await remove()
                except (BangerError, OSError) as failed:
                    log.warning("%s could not be removed: %s", leftover.path, failed)
                    error = ErrorRecord.of(_told(failed, leftover))
            done.append(Pruned(leftover, removed=not dry_run and error is None, error=error))
        return done

    async def _leftovers(
        self, wish: Wish
    ) -> list[tuple[Leftover, Callable[[], Awaitable[object]]]]:
        context = self._context
        found: list[tuple[Leftover, Callable[[], Awaitable[object]]]] = [
            (Leftover("build", path, size_bytes), context.images.sweep)
            for path, size_bytes in await asyncio.to_thread(context.images.leftovers)
        ]
        kept = await asyncio.to_thread(context.images.downloads)
        if kept is not None:
            found.append((Leftover("cache", *kept), _in_thread(context.images.clear_downloads)))
        orphans = await self._orphans()
        found += [(await _sized("vm", path), self._remover(path)) for path in orphans]
        if wish.databases:
            aside = sorted(context.places.state_dir.glob(f"{_CORRUPT}*"))
            found += [(await _sized("database", path), _unlink(path)) for path in aside]
        if wish.images:
            found += [await self._image(image_id) for image_id in self._unused_images()]
        return found

    def _unused_images(self) -> list[str]:
        return [
            image.id
            for image in self._context.images.list()
            if image.name != self._default_image and not self._engine.using_image(image.id)
        ]

    async def _image(self, image_id: str) -> tuple[Leftover, Callable[[], Awaitable[object]]]:
        images = self._context.images
        path = self._context.places.state_dir / "images" / image_id
        size_bytes = await asyncio.to_thread(images.allocated_bytes, image_id)
        leftover = Leftover("image", path, size_bytes, images.get(image_id).name)
        return leftover, lambda: self._image_work.delete(image_id)

    async def _orphans(self) -> list[Path]:
        """Directories of VMs that nobody knows: ours by owner, name and content, old, and without a record to come back from."""
        with_rows = {row.vm_id for row in self._context.store.ledger()}
        known = {machine.id for machine in self._engine.machines()} | with_rows
        directory = self._context.places.state_dir / "vms"
        found = await asyncio.to_thread(_all_orphans, directory)
        return [path for path in found if path.name not in known]

    def _remover(self, path: Path) -> Callable[[], Awaitable[object]]:
        async def remove() -> None:
            paths = self._context.places.of(path.name)
            running = self._context.vmms.find(paths)
            if path not in await self._orphans() or running is not None:
                return
            await self._context.storage.close_root(paths)
            for tree in (paths.runtime, paths.state):
                await asyncio.to_thread(fs.remove_tree, tree)

        return remove


def _all_orphans(directory: Path) -> list[Path]:
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if _is_orphan(path))


def _is_orphan(path: Path) -> bool:
    """Whether this is a VM's directory that its deletion left, and not something that somebody put there."""
    try:
        status = path.lstat()
        if not is_id(path.name) or status.st_uid != os.geteuid() or not path.is_dir():
            return False
        if path.is_symlink() or (path / "vm.json").exists():
            return False
        return only_ours(path) and is_old(path)
    except OSError:
        return False


def only_ours(path: Path) -> bool:
    """Whether a VM's directory has nothing but what banger writes there."""
    return all(entry.name in _OWN_FILES for entry in path.iterdir())


def is_old(path: Path) -> bool:
    """Whether nothing in a VM's directory was changed for a day."""
    newest_s = max(each.lstat().st_mtime for each in (path, *path.iterdir()))
    return clock.epoch_ms() / 1000 - newest_s > OLD_S


async def _sized(kind: LeftoverKind, path: Path) -> Leftover:
    size_bytes = await asyncio.to_thread(lambda: sum(_sizes(path)))
    return Leftover(kind, path, size_bytes)


def _sizes(path: Path) -> Iterator[int]:
    for below in (path, *path.rglob("*")):
        with suppress(OSError):
            yield below.lstat().st_blocks * 512


def _unlink(path: Path) -> Callable[[], Awaitable[object]]:
    async def remove() -> None:
        await asyncio.to_thread(path.unlink, missing_ok=True)

    return remove


def _in_thread(work: Callable[[], None]) -> Callable[[], Awaitable[object]]:
    async def remove() -> None:
        await asyncio.to_thread(work)

    return remove


def _told(error: Exception, leftover: Leftover) -> Exception:
    """An error of the kernel in banger's words."""
    if isinstance(error, BangerError):
        return error
    return BangerError(
        f"{leftover.path} could not be removed", detail=str(error), hint=f"ls -ld {leftover.path}"
    )
