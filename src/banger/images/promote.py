"""One promotion: the disks of a VM at rest become an image that needs neither the VM nor the image that it was made from.

::

    root disk ──flatten──> rootfs.img ──> checked, cleaned of what is the VM's alone, compacted
    work disk ───────────> work-seed.img  the same (asked), else the seed of the VM's image
    vmlinux, vmlinuz, initramfs.img       those of the VM's image: the boot stack is an image's, not a VM's

Nothing is mounted. The guest may have written anything into its disks: what reads them is guarded (`banger.images.mend`).
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from banger.host import fs
from banger.host.threads import finish, in_thread, stoppable
from banger.images import home
from banger.images.boot_files import VMLINUX, VMLINUZ
from banger.images.clean import clean_home, clean_root, identity_left
from banger.images.mend import compact, repair
from banger.images.root_facts import check_root, read_system
from banger.images.sandbox import check_sandbox
from banger.images.seal import seal_file, write_manifest
from banger.images.seeds import SEED, wrong
from banger.model import clock
from banger.model.errors import HostLacksError
from banger.model.manifest import (
    FROM_ROOT,
    GIVEN,
    PROMOTED,
    FileEntry,
    HistoryEntry,
    ImageManifest,
)
from banger.model.promotion import Promotion, PromotionSource
from banger.model.units import MIB, format_size

Progress = Callable[[str, str], Awaitable[None] | None]
ROOTFS, INITRAMFS = "rootfs.img", "initramfs.img"
RESERVE_BYTES = 256 * MIB  # two journals, and what a repair may add


@dataclass(slots=True)
class Promote:
    """One run in the empty directory ``work``; ``base`` is the image of the VM, in ``base_dir``."""

    wish: Promotion
    source: PromotionSource
    base: ImageManifest
    base_dir: Path
    work: Path
    progress: Progress

    async def run(self) -> ImageManifest:
        """Make all files and the manifest in ``work``."""
        await check_sandbox()
        rootfs = self.work / ROOTFS
        await self._flatten(rootfs)
        flushing = asyncio.create_task(in_thread(_flush, rootfs))  # beside tools that compute
        try:
            await self._repair(rootfs)
            await self._say("clean", "")
            count = await clean_root(rootfs, history=self.wish.clean_history)
            await self._say("clean", f"{count} edits")
        finally:
            await finish(flushing)
        await self._say("compact", "")
        given_back = await compact(rootfs, self._disk("root disk"), hint=self._look())
        left = await identity_left(rootfs)  # a tool may have met a full disk and not said so
        if left:
            raise HostLacksError(
                f"{self._disk('root disk')} could not be cleaned of what is the VM's alone",
                detail=f"still there: {' '.join(left)}",
                hint=f"df -h {self.work.parent}",
            )
        await self._say("compact", f"{format_size(given_back)} given back")
        seed, seed_entry = await self._seed()
        await self._say("kernel", f"{self.base.kernel_release}, of {self.base.name}")
        names = [n for n in (VMLINUX, VMLINUZ, INITRAMFS) if n in self.base.files]
        files = {name: await self._share(name) for name in names}
        await self._say("seal", "digests")
        files |= {ROOTFS: await stoppable(seal_file, rootfs)}
        files |= {SEED: seed_entry} if seed_entry is not None else {}
        return await self._manifest(files, seed)

    async def _manifest(self, files: dict[str, FileEntry], seed: str) -> ImageManifest:
        system = await read_system(self.work / ROOTFS, None, self.base.services)
        entry = HistoryEntry(clock.now(), PROMOTED, self.base.id, self.source.vm_name)
        manifest = ImageManifest(
            id="",
            name=self.wish.name,
            distribution=system.distribution,
            release=system.release,
            architecture=self.base.architecture,
            created_at=clock.now(),
            inputs_digest="",
            disk_bytes=files[ROOTFS].size_bytes,
            kernel_release=self.base.kernel_release,
            cmdline=self.base.cmdline,
            files=files,
            services=system.services,
            packages=system.packages,
            kernel_digest=self.base.kernel_digest,
            pvh=self.base.pvh,
            payload=system.payload,
            seed=seed,
            seed_of=GIVEN if self.wish.with_work else self.base.seed_of,
            parent=self.base.id,
            history=(*self.base.history, entry),
        )
        return write_manifest(self.work, manifest)

    async def _say(self, stage: str, detail: str) -> None:
        outcome = self.progress(stage, detail)
        if outcome is not None:
            await outcome

    def _disk(self, which: str) -> str:
        return f"the {which} of VM {self.source.vm_name}"

    def _look(self) -> str:
        return f"banger vm start {self.source.vm_name}, and look at its console: banger vm logs {self.source.vm_name}"

    async def _flatten(self, rootfs: Path) -> None:
        await self._say("flatten", format_size(self.base.disk_bytes))
        how = await self.source.copy_root(rootfs)
        await self._say("flatten", f"{format_size(fs.length_bytes(rootfs))}, {how}")

    async def _repair(self, rootfs: Path) -> None:
        await self._say("repair", "")
        await in_thread(rootfs.chmod, 0o600)
        mended = await repair(rootfs, self._disk("root disk"), hint=self._look())
        await check_root(rootfs)
        await self._say("repair", "corrected" if mended else "clean")

    async def _seed(self) -> tuple[str, FileEntry | None]:
        """Fingerprint and entry of the new seed; no entry if the image has none and makes it when it is needed."""
        if self.wish.with_work:
            return await self._seed_of_work()
        entry = self.base.files.get(SEED)
        trouble = await in_thread(wrong, self.base_dir / SEED, entry)
        if entry is None or trouble:
            if trouble != "missing" and self.base.seed_of != FROM_ROOT:
                raise HostLacksError(
                    f"the work seed of image {self.base.name} is {trouble}",
                    detail=str(self.base_dir / SEED),
                    hint=f"banger image promote {self.source.vm_name} --name {self.wish.name} --with-work",
                )
            await self._say("seed", f"none: that of {self.base.name} is {trouble or 'missing'}")
            return "", None
        await self._say("seed", f"of {self.base.name}")
        return self.base.seed, await self._share(SEED)

    async def _seed_of_work(self) -> tuple[str, FileEntry]:
        seed, what = self.work / SEED, self._disk("work disk")
        await self._say("seed", format_size(fs.length_bytes(self.source.work)))
        how = await stoppable(fs.clone_file, self.source.work, seed)
        await repair(seed, what, hint=self._look())
        await home.flatten(seed, self.work / "tree")
        warning = await clean_home(seed, history=self.wish.clean_history)
        await home.complete(seed)
        await home.make_growable(seed)
        await compact(seed, what, hint=self._look())
        said = [format_size(fs.allocated_bytes(seed)), how, *([warning] if warning else [])]
        await self._say("seed", ", ".join(said))
        return home.fingerprint(), await stoppable(seal_file, seed)

    async def _share(self, name: str) -> FileEntry:
        """A file of the VM's image, whose manifest says its digest."""
        entry = self.base.files[name]
        if fs.length_bytes(self.base_dir / name) != entry.size_bytes:
            raise HostLacksError(
                f"{self.base_dir / name} is missing or damaged", hint=self.base.remedy
            )
        await stoppable(fs.share_file, self.base_dir / name, self.work / name)
        return entry


def _flush(path: Path) -> None:
    """Begin to write early what has to be on the disk in the end."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
