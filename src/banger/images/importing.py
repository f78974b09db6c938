"""Images out of what somebody else made: a foreign root with a boot stack beside it, or an image that banger exported."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from banger.host.threads import in_thread, stoppable
from banger.images.boot_files import Known
from banger.images.boxes import EXPORT_HEAD, SourceKind, first_name, quick_kind
from banger.images.ext4 import check_ext4, read_file
from banger.images.foreign import ROOTFS, SEED, Base, ForeignRoot
from banger.images.image_file import ImageFile
from banger.images.register import Register
from banger.images.root_facts import AGENT
from banger.images.sandbox import remove_mapped
from banger.images.seal import write_manifest
from banger.model.errors import InvalidInputError, NotFoundError
from banger.model.manifest import FileEntry, ImageManifest
from banger.model.registration import Registration
from banger.model.transfer import ImageImport

Progress = Callable[[str, str], Awaitable[None] | None]
_SCRATCH = ".scratch"
_KERNELS = ("vmlinuz", "vmlinux")


async def is_foreign(path: Path) -> bool:
    """Whether the root in ``path`` has to be made a guest's; InvalidInputError or NotFoundError if there is none."""
    kind = await in_thread(quick_kind, path, "rootfs")
    if kind != "ext4":
        return True
    await check_ext4(path, "rootfs")
    return await read_file(path, AGENT) is None


def import_kind(path: Path) -> SourceKind:
    """What ``path`` is, an exported image told from other archives; InvalidInputError or NotFoundError if nothing that can be imported."""
    kind = quick_kind(path, "image")
    if kind == "tar" and first_name(path, "image") == EXPORT_HEAD:
        return "export"
    return kind


def exported_name(path: Path) -> str:
    """What the image in an exported file is called."""
    with ImageFile(path) as file:
        return file.manifest.name


@dataclass(slots=True)
class Importer:
    """One run in the empty directory ``work``; ``base`` gives the boot stack, unless one came along."""

    work: Path
    base: Base | None
    known: Known
    progress: Progress

    async def register(self, wish: Registration) -> ImageManifest:
        """An image with the foreign root that ``wish`` names."""
        root = await self._open(wish.rootfs, wish.ref, start_command=wish.start_command)
        root.asked_services = wish.services
        return await self._finish(root, wish)

    async def import_root(self, wish: ImageImport, name: str) -> ImageManifest:
        """An image out of a container image or a root file system."""
        root = await self._open(wish.path, wish.ref, start_command=wish.start_command)
        root.asked_services = wish.services
        if root.boot is not None:
            return await self._finish(root, await self._with_boot(root.boot, wish, name))
        if self.base is None:
            raise NotFoundError(
                "no image gives a kernel to what is imported",
                detail=f"{wish.path} has none, and there is no image on this host",
                hint="banger image build debian",
            )
        return await self._finish(
            root,
            Registration(
                name, base=self.base.manifest.id, rootfs=wish.path, services=wish.services, boot_only=True
            ),
        )  # fmt: skip

    async def import_file(self, wish: ImageImport) -> ImageManifest:
        """The image that was exported to a file: the same one, unless it is to have another name."""
        await self._say("files", wish.path.name)
        manifest, _ = await stoppable(_unpack, wish.path, self.work, without=())
        await self._say("seal", "manifest")
        return write_manifest(self.work, replace(manifest, name=wish.name or manifest.name))

    async def _say(self, stage: str, detail: str) -> None:
        outcome = self.progress(stage, detail)
        if outcome is not None:
            await outcome

    async def _open(self, path: Path | None, ref: str | None, *, start_command: bool) -> ForeignRoot:  # fmt: skip
        if path is None:
            raise RuntimeError("there is a root file system")
        scratch = self.work / _SCRATCH
        await in_thread(scratch.mkdir)
        root = ForeignRoot(path, self.work, scratch, self.base, self.progress, ref, start_command)
        await root.open()
        return root

    async def _with_boot(self, boot: Path, wish: ImageImport, name: str) -> Registration:
        """The boot stack that banger put beside the layers."""
        await self._say("boot", "its own boot stack")
        target = self.work / _SCRATCH / "boot"
        await in_thread(target.mkdir)
        manifest, files = await stoppable(_unpack, boot, target, without=(ROOTFS,))
        kernel = next((target / name for name in _KERNELS if name in files), None)
        return Registration(
            name,
            rootfs=wish.path,
            kernel=kernel,
            initramfs=target / "initramfs.img",
            work_seed=target / SEED,
            cmdline=manifest.cmdline,
            services=manifest.services if wish.services is None else wish.services,
        )

    async def _finish(self, root: ForeignRoot, wish: Registration) -> ImageManifest:
        made = {ROOTFS} | ({SEED} if wish.work_seed is None else set())
        await root.make(seed=SEED in made)
        base = self.base if wish.base is not None else None
        image = None if base is None else base.manifest
        directory = None if base is None else base.directory
        run = Register(wish, image, directory, self.known, self.work, self.progress, made)
        manifest = await run.run()
        await remove_mapped(root.scratch)
        return manifest


def _unpack(
    path: Path, target: Path, *, without: tuple[str, ...], between: Callable[[], None]
) -> tuple[ImageManifest, dict[str, FileEntry]]:
    with ImageFile(path, between=between) as file:
        names = [name for name in file.manifest.files if name not in without]
        missing = {"initramfs.img", SEED} - set(names)
        if missing or not set(_KERNELS) & set(names) or ROOTFS not in file.manifest.files:
            raise InvalidInputError(f"{path} is no whole image", hint="export it again")
        return file.manifest, file.unpack(target, names)
