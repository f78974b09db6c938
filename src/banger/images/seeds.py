"""The work seed of an image: whether it is what the manifest says, made again where it is not, renewed where it is of an older banger.

A seed is replaced while VMs may be cloned from it. The new one is first ``work-seed.img.new``, then the manifest states it, then it takes its
place by a rename: whoever has the old one open keeps it. Killed in between, `recover` knows by the digest what is to become of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

from banger.host import fs
from banger.host.threads import in_thread, stoppable
from banger.images import home
from banger.images.mend import repair
from banger.images.seal import put_manifest, seal_file
from banger.images.workshop import Workshop
from banger.model import clock
from banger.model.errors import HostLacksError
from banger.model.machine import SeedState
from banger.model.manifest import FROM_ROOT, SEEDED, FileEntry, HistoryEntry, ImageManifest
from banger.model.units import MIB

SEED, ROOTFS, COMING = "work-seed.img", "rootfs.img", "work-seed.img.new"
_WAIT_S = 1800.0
_DIGEST_BYTES = (
    64 * MIB
)  # a larger one is not read whole before a clone: that would cost more than the clone
_REMEMBERED = 64


@dataclass(slots=True)
class Seeds:
    """The seeds of the images in ``directory``; ``get`` reads the manifest of an image as it is now."""

    directory: Path
    workshop: Workshop
    get: Callable[[str], ImageManifest]

    async def ready(self, manifest: ImageManifest) -> SeedState:
        """Make sure that the image has a whole seed; see `engine.ports.Images.seed`."""
        wrong = await in_thread(self._wrong, manifest)
        if not wrong:
            return SeedState(current=manifest.seed == home.fingerprint())
        async with self.workshop.bench(_WAIT_S) as scratch:
            await in_thread(recover, self.directory / manifest.id, self.get(manifest.id))
            manifest = self.get(manifest.id)
            wrong = await in_thread(self._wrong, manifest)
            if wrong:
                manifest = await self._remake(manifest, scratch, wrong)
        detail = f"work seed made again, it was {wrong}" if wrong else ""
        return SeedState(current=manifest.seed == home.fingerprint(), detail=detail)

    async def refresh(self, image_id: str) -> str:
        """Bring an image's seed to what this banger makes seeds ready with; a few words on what was done."""
        async with self.workshop.bench(_WAIT_S) as scratch:
            manifest = self.get(image_id)
            if manifest.seed == home.fingerprint():
                return "is up to date"
            path, new = self.directory / image_id / SEED, scratch / SEED
            await stoppable(fs.clone_file, path, new)
            await repair(new, f"work seed {path}", hint=_drop(path))
            moved = await home.flatten(new, scratch / "tree")
            added = await home.complete(new)
            journal = await home.make_growable(new)
            await self._install(manifest, new, manifest.seed_of)
        done = [
            *(["moved up out of root/"] if moved else []),
            *([f"added {' '.join(added)}"] if added else []),
            *(["new journal"] if journal else []),
        ]
        return ", ".join(done) or "had all it needs"

    async def recover_all(self, manifests: list[ImageManifest]) -> None:
        """Finish what a killed daemon began, unless an image is made just now."""
        there = [m for m in manifests if (self.directory / m.id / COMING).exists()]
        if there:
            async with self.workshop.hold(0):
                for manifest in there:
                    await in_thread(recover, self.directory / manifest.id, manifest)

    def _wrong(self, manifest: ImageManifest) -> str:
        return wrong(self.directory / manifest.id / SEED, manifest.files.get(SEED))

    async def _remake(self, manifest: ImageManifest, scratch: Path, why: str) -> ImageManifest:
        path = self.directory / manifest.id / SEED
        if manifest.seed_of != FROM_ROOT and path.exists():
            raise HostLacksError(
                f"the work seed of image {manifest.name} is {why}",
                detail=f"{path} has content of its own, which nothing else has: it cannot be made again",
                hint=f"{_drop(path)}, then a seed is made of the image's own /root",
            )
        await home.make_seed(path.with_name(ROOTFS), scratch / SEED, scratch / "tree")
        return await self._install(manifest, scratch / SEED, FROM_ROOT)

    async def _install(self, manifest: ImageManifest, new: Path, seed_of: str) -> ImageManifest:
        entry = await stoppable(seal_file, new)
        made = replace(
            manifest,
            files={**manifest.files, SEED: entry},
            seed=home.fingerprint(),
            seed_of=seed_of,
            history=(*manifest.history, HistoryEntry(clock.now(), SEEDED)),
        )
        await in_thread(_swap, self.directory / manifest.id, new, made)
        return made


def wrong(path: Path, entry: FileEntry | None) -> str:
    """What is wrong with the seed ``path``, of which the manifest says ``entry``; "" if nothing is."""
    try:
        found = path.stat()
    except FileNotFoundError:
        return "missing"
    if entry is None or found.st_size != entry.size_bytes:
        return "damaged (its size)"
    if found.st_blocks * 512 <= _DIGEST_BYTES:
        stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        return "" if _digest(os.fspath(path), stamp) == entry.digest else "damaged (its digest)"
    with path.open("rb") as file:
        return superblock_trouble(file.read(2048)[1024:], found.st_size)


def superblock_trouble(block: bytes, size_bytes: int) -> str:
    """Why a file of ``size_bytes`` with this ext4 superblock cannot be cloned; "" if it can.

    Kernel's struct ext4_super_block: s_blocks_count_lo at 0x4, s_log_block_size 0x18, s_magic 0x38, s_state 0x3A (1 clean, 2 errors),
    s_feature_incompat 0x60 (4 journal not replayed), s_blocks_count_hi 0x150.
    """

    def word(at: int, size: int = 4) -> int:
        return int.from_bytes(block[at : at + size], "little")

    if len(block) < 1024 or word(0x38, 2) != 0xEF53 or word(0x18) > 6:
        return "damaged (no ext4)"
    if word(0x3A, 2) != 1 or word(0x60) & 4:
        return "damaged (not clean)"
    blocks = word(0x150) << 32 | word(0x4)
    return "damaged (its end)" if blocks << (10 + word(0x18)) > size_bytes else ""


@lru_cache(maxsize=_REMEMBERED)
def _digest(path: str, stamp: tuple[int, ...]) -> str:
    """As of `banger.storage.boot_check`: a write changes the stamp."""
    del stamp
    return fs.sparse_digest(Path(path))


def recover(directory: Path, manifest: ImageManifest) -> None:
    """Finish or forget the swap that somebody was killed in; the caller holds the workshop."""
    coming, entry = directory / COMING, manifest.files.get(SEED)
    if not coming.exists():
        return
    if entry is not None and fs.sparse_digest(coming) == entry.digest:
        coming.replace(directory / SEED)
    else:
        coming.unlink()


def _swap(directory: Path, new: Path, manifest: ImageManifest) -> None:
    new.replace(directory / COMING)
    put_manifest(directory, manifest)
    (directory / COMING).replace(directory / SEED)


def _drop(path: Path) -> str:
    return f"rm {path}"
