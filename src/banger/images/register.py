"""One registration: an image out of files that a user has, and of another image for what is not given.

::

    kernel ──> vmlinux (, vmlinuz) ──┐ release, digest
    modules, busybox of the rootfs ──┴─> initramfs.img     (or as given, or the base image's if the kernel is)
    rootfs ──> rootfs.img ──> work-seed.img out of its /root (or as given, or the base image's)

What is quick and may be refused comes first. Files are copied, their blocks shared where that can be; those of the base image, which
nobody changes, are shared everywhere.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from banger.host import fs
from banger.host.threads import in_thread, stoppable
from banger.images.boot_files import VMLINUX, VMLINUZ, Kernel, Known, place_kernel
from banger.images.elf import read_elf
from banger.images.ext4 import read_file
from banger.images.home import SEED_BYTES, fingerprint, make_seed
from banger.images.initramfs import make_initramfs
from banger.images.kernel import KernelFacts, has_text
from banger.images.modules import Modules, read_modules
from banger.images.recipe import load_recipe
from banger.images.resources import payload_dir
from banger.images.root_facts import read_system
from banger.images.seal import seal_file, write_manifest
from banger.model import clock
from banger.model.errors import HostLacksError, InvalidInputError
from banger.model.manifest import (
    FROM_ROOT,
    GIVEN,
    REGISTERED,
    FileEntry,
    HistoryEntry,
    ImageManifest,
)
from banger.model.registration import Registration
from banger.model.spec import MIN_DISK_BYTES
from banger.model.units import MIB, format_size

Progress = Callable[[str, str], Awaitable[None] | None]
ROOTFS, SEED, INITRAMFS = "rootfs.img", "work-seed.img", "initramfs.img"
DRIVERS = {"virtio_mmio": b"virtio-mmio", "virtio_blk": b"virtio_blk", "ext4": b"ext4"}
"""What banger's initramfs cannot do without, and the name by which the driver calls itself in a kernel that has it built in."""
_ALSO = ("crc32c_generic",)  # ext4 asks for it by a name that only modprobe would resolve
_BUSYBOX = ("/usr/bin/busybox", "/bin/busybox")
_CMDLINE = "rw"


@dataclass(slots=True)
class Register:
    """One run in the empty directory ``work``; ``base`` and ``base_dir`` are those of the image that ``wish`` names.

    ``made`` are files that are there already: of a root that was given in another form than an ext4 with banger's agent.
    """

    wish: Registration
    base: ImageManifest | None
    base_dir: Path | None
    known: Known
    work: Path
    progress: Progress
    made: Collection[str] = ()

    async def run(self) -> ImageManifest:
        """Make all files and the manifest in ``work``."""
        kernel = await self._kernel()
        initramfs = await self._initramfs(kernel)
        rootfs = await self._disk("rootfs", ROOTFS, self.wish.rootfs)
        seed = await self._seed()
        await self._say("seal", "manifest")
        files = {**kernel.files, INITRAMFS: initramfs, ROOTFS: rootfs, SEED: seed}
        given = self.work / ROOTFS if self.wish.rootfs is not None else None
        system = await read_system(given, self.base, self.wish.services)
        manifest = ImageManifest(
            id="",
            name=self.wish.name,
            distribution=system.distribution,
            release=system.release,
            architecture="amd64",
            created_at=clock.now(),
            inputs_digest="",
            disk_bytes=rootfs.size_bytes,
            kernel_release=kernel.facts.release or "unknown",
            cmdline=self._cmdline(),
            files=files,
            services=system.services,
            packages=system.packages,
            kernel_digest=kernel.digest,
            pvh=kernel.facts.pvh,
            payload=system.payload,
            seed=self._fingerprint(),
            seed_of=self._seed_of(),
            history=(HistoryEntry(clock.now(), REGISTERED, self.base.id if self.base else ""),),
        )
        return write_manifest(self.work, manifest)

    def _fingerprint(self) -> str:
        """A seed that was given is made ready when it is first used."""
        if self.wish.work_seed is not None:
            return ""
        return fingerprint() if self.base is None or self._own_seed else self.base.seed

    def _seed_of(self) -> str:
        """Of another root file system the base image's seed could not be made again."""
        if self.wish.work_seed is not None:
            return GIVEN
        if self.base is None or self._own_seed:
            return FROM_ROOT
        return GIVEN if self.wish.rootfs is not None else self.base.seed_of

    @property
    def _own_seed(self) -> bool:
        """Whether the seed is made out of the root's own /root."""
        return SEED in self.made or self.wish.boot_only

    async def _say(self, stage: str, detail: str) -> None:
        outcome = self.progress(stage, detail)
        if outcome is not None:
            await outcome

    def _cmdline(self) -> str:
        if self.wish.cmdline is not None:
            return self.wish.cmdline
        return self.base.cmdline if self.base is not None else _CMDLINE

    async def _kernel(self) -> Kernel:
        await self._say("kernel", "")
        if self.wish.kernel is None:
            kernel = await self._base_kernel()
        else:
            await stoppable(fs.clone_file, self.wish.kernel, self.work / VMLINUZ)
            kernel = await in_thread(place_kernel, self.work, self.known)
        if not kernel.facts.pvh and VMLINUZ not in kernel.files:
            raise InvalidInputError(
                f"kernel {self.wish.kernel} has no PVH entry, so QEMU cannot start it",
                hint="give its bzImage (arch/x86/boot/bzImage), or build it with CONFIG_PVH=y",
            )
        await self._say("kernel", f"{kernel.facts.release or 'no Linux'}, {kernel.how}")
        return kernel

    async def _base_kernel(self) -> Kernel:
        base, _ = self._needed_base()
        names = [name for name in (VMLINUX, VMLINUZ) if name in base.files]
        files = {name: await self._share(name) for name in names}
        digest = base.kernel_digest or files[names[-1]].digest
        return Kernel(KernelFacts(base.kernel_release, base.pvh), digest, files, f"of {base.name}")

    async def _initramfs(self, kernel: Kernel) -> FileEntry:
        wish = self.wish
        if wish.initramfs is not None:
            return await self._copy("initramfs", INITRAMFS, wish.initramfs)
        if wish.modules is None and not wish.built_in and self._is_bases(kernel):
            await self._say("initramfs", f"of {self._needed_base()[0].name}")
            return await self._share(INITRAMFS)
        modules = await self._modules(kernel)
        await self._say("initramfs", f"{len(modules.files)} modules")
        busybox = await self._busybox()
        init = (payload_dir() / "init").read_bytes()
        path = self.work / INITRAMFS
        await in_thread(path.write_bytes, make_initramfs(busybox, modules.files, init))
        return await in_thread(seal_file, path)

    def _is_bases(self, kernel: Kernel) -> bool:
        """Whether ``kernel`` is the base image's, by its digest: then that image's initramfs goes with it."""
        files = {} if self.base is None else self.base.files
        return kernel.digest in {files[name].digest for name in (VMLINUX, VMLINUZ) if name in files}

    async def _modules(self, kernel: Kernel) -> Modules:
        release = kernel.facts.release
        if self.wish.modules is not None:
            wished = [*_ALSO, *load_recipe("debian").recipe.kernel_modules]
            return await stoppable(
                read_modules, self.wish.modules, release, required=list(DRIVERS), wished=wished
            )
        if not self.wish.built_in:
            raise InvalidInputError(
                f"kernel {self.wish.kernel} ({release or 'no Linux'}) is not that of image {self.wish.base}, "
                "so the modules in its initramfs do not fit",
                hint="add --modules with its lib/modules/RELEASE, --initramfs FILE, or --modules none if it needs none",
            )
        vmlinux = self.work / VMLINUX
        missing = [name for name, text in DRIVERS.items() if not await in_thread(has_text, vmlinux, text)]  # fmt: skip
        if missing:
            raise InvalidInputError(
                f"kernel {release or self.wish.kernel} has no {' and no '.join(missing)} built in",
                hint="give its modules: --modules lib/modules/RELEASE",
            )
        return Modules(release, {})

    async def _busybox(self) -> bytes:
        """The static busybox of the rootfs, else of the base image's: with it banger's initramfs is made."""
        own = self.work / ROOTFS if ROOTFS in self.made else self.wish.rootfs
        roots = [own, self.base_dir / ROOTFS if self.base_dir is not None else None]
        for root in roots:
            for path in _BUSYBOX if root is not None else ():
                data = await read_file(root, path) if root is not None else None
                found = read_elf(data) if data is not None else None
                if data is not None and found is not None and found.static:
                    return data
        raise InvalidInputError(
            f"{self.wish.rootfs} has no static busybox, with which banger's initramfs is made",
            hint="install busybox-static in it, or give an initramfs of your own: --initramfs FILE",
        )

    async def _disk(self, stage: str, name: str, given: Path | None) -> FileEntry:
        """A file with a file system: as given, filled up to whole MiB, else the base image's."""
        if name in self.made:
            return await stoppable(seal_file, self.work / name)
        if given is not None:
            return await self._copy(stage, name, given, whole_mib=True)
        base, _ = self._needed_base()
        await self._say(stage, f"{format_size(base.files[name].size_bytes)}, of {base.name}")
        return await self._share(name)

    async def _seed(self) -> FileEntry:
        of_base = self.base is not None and not self.wish.boot_only
        if SEED in self.made or self.wish.work_seed is not None or of_base:
            return await self._disk("seed", SEED, self.wish.work_seed)
        await self._say("seed", f"{format_size(SEED_BYTES)}, out of /root")
        await make_seed(self.work / ROOTFS, self.work / SEED, self.work / "tree")
        return await in_thread(seal_file, self.work / SEED)

    async def _copy(
        self, stage: str, name: str, source: Path, *, whole_mib: bool = False
    ) -> FileEntry:
        target = self.work / name
        await self._say(stage, format_size(fs.length_bytes(source)))
        how = await stoppable(fs.clone_file, source, target)
        size_bytes = fs.length_bytes(target)
        if whole_mib:
            os.truncate(target, max(-(-size_bytes // MIB) * MIB, MIN_DISK_BYTES))
        await self._say(stage, f"{format_size(size_bytes)}, {how}")
        return await stoppable(seal_file, target)

    async def _share(self, name: str) -> FileEntry:
        """A file of the base image, whose manifest says its digest."""
        base, directory = self._needed_base()
        entry = base.files.get(name)
        if entry is None or fs.length_bytes(directory / name) != entry.size_bytes:
            raise HostLacksError(f"{directory / name} is missing or damaged", hint=base.remedy)
        await stoppable(fs.share_file, directory / name, self.work / name)
        return entry

    def _needed_base(self) -> tuple[ImageManifest, Path]:
        if self.base is None or self.base_dir is None:
            raise RuntimeError("a registration without a base image gives everything itself")
        return self.base, self.base_dir
