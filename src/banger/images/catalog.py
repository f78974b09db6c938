"""The images on this host: one directory each, ``images/<id>`` with a manifest; a name belongs to the newest image that took it."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from banger.host import fs
from banger.host.threads import in_thread
from banger.images.boot_files import VMLINUX, VMLINUZ, Known, known_kernels
from banger.images.build import SPACE_BYTES, Build, Progress, inputs_digest
from banger.images.ext4 import check_ext4
from banger.images.inputs import check_inputs, clear_errors, needed_bytes
from banger.images.recipe import load_recipe
from banger.images.register import Register
from banger.images.root_facts import check_root
from banger.images.seal import MANIFEST
from banger.images.workshop import Workshop
from banger.model.errors import HostLacksError, InvalidInputError, NotFoundError, RefusedError
from banger.model.ids import ID_LENGTH, check_name, is_id
from banger.model.machine import BootStack
from banger.model.manifest import ImageManifest
from banger.model.registration import Registration

_DETAIL_CHARS = 3000
_OLD_NAME_CHARS = 63 - 1 - ID_LENGTH


class ImageCatalog:
    """See `engine.ports.Images`. Manifests are cached by the directory's modification time."""

    def __init__(
        self,
        images_dir: Path,
        log_dir: Path,
        *,
        mirror: str | None = None,
        agent: Path | None = None,
    ) -> None:
        self._dir = images_dir
        self._logs = log_dir
        self._mirror = mirror
        self._agent = agent
        self._workshop = Workshop(images_dir)
        self._cache: dict[str, tuple[int, ImageManifest]] = {}

    def list(self) -> list[ImageManifest]:
        """All images, oldest first."""
        if not self._dir.is_dir():
            return []
        found = [self._read(entry) for entry in os.scandir(self._dir) if is_id(entry.name)]
        return sorted((m for m in found if m is not None), key=lambda m: (m.created_at, m.id))

    def _read(self, entry: os.DirEntry[str]) -> ImageManifest | None:
        path = Path(entry.path) / MANIFEST
        try:
            stamp = path.stat().st_mtime_ns
            cached = self._cache.get(entry.name)
            if cached is None or cached[0] != stamp:
                cached = (stamp, msgspec.json.decode(path.read_bytes(), type=ImageManifest))
                self._cache[entry.name] = cached
        except (OSError, msgspec.MsgspecError):
            return None  # not sealed, or damaged: it cannot be used, and `boot_stack` says so
        return cached[1]

    def get(self, ref: str) -> ImageManifest:
        """By name, id or unique id prefix."""
        images = self.list()
        exact = [image for image in images if ref in (image.name, image.id)]
        if exact:
            return exact[-1]
        found = [image for image in images if ref and image.id.startswith(ref)]
        if len(found) > 1:
            raise InvalidInputError(
                f"image id prefix {ref!r} is not unique", hint="give more digits"
            )
        if not found:
            shown = ref if len(ref) <= 64 else ref[:61] + "..."
            raise NotFoundError(
                f"no image {shown!r}",
                hint=f"banger image build {ref if ref.isalnum() else 'debian'}",
            )
        return found[0]

    def check_recipe(self, recipe: str, *, name: str | None) -> None:
        """Read the recipe for its errors."""
        load_recipe(recipe)
        if name is not None:
            check_name(name, what="image")

    def boot_stack(self, image_id: str) -> BootStack:
        """The files of an image; NotFoundError if its directory or manifest is gone."""
        manifest = next((image for image in self.list() if image.id == image_id), None)
        directory = self._dir / image_id
        if manifest is None:
            raise NotFoundError(
                f"image {image_id} is gone or damaged",
                detail=str(directory),
                hint="banger image build debian",
            )
        return BootStack(
            kernel=directory / VMLINUX,
            initramfs=directory / "initramfs.img",
            rootfs=directory / "rootfs.img",
            work_seed=directory / "work-seed.img",
            cmdline=manifest.cmdline,
            manifest=manifest,
            bzimage=directory / VMLINUZ if VMLINUZ in manifest.files else None,
        )

    async def build(
        self, recipe: str, *, name: str | None, force: bool, progress: Progress
    ) -> ImageManifest:
        """Build an image, or find that the one of this name would come out the same."""
        loaded = load_recipe(recipe)
        image_name = name or loaded.recipe.name
        await _await(progress("resolve", image_name))
        digest = inputs_digest(loaded, self._mirror, self._agent)
        current = next((image for image in reversed(self.list()) if image.name == image_name), None)
        if current and current.inputs_digest == digest and not force and self._whole(current):
            await _await(progress("resolve", f"{image_name} is up to date"))
            return current

        async def fill(work: Path) -> ImageManifest:
            log = self._log(image_name)
            build = Build(
                loaded,
                image_name,
                self._mirror,
                work,
                log,
                progress,
                self._agent,
                recipe,
                self._known(),
            )
            return await _run(build)

        return await self._workshop.make(SPACE_BYTES, fill, self._rename_older)

    async def check_registration(self, wish: Registration) -> None:
        """Look at all that was given, as far as that is quick; see `engine.ports.Images`."""
        taken = next((image for image in self.list() if image.name == wish.name), None)
        if taken is not None and not wish.replace:
            raise RefusedError(
                f"image name {wish.name!r} is taken",
                hint=f"choose another --name, or add --replace: then {taken.id} is called {_old_name(taken)}",
            )
        if wish.base is not None:
            self.get(wish.base)
        await in_thread(check_inputs, wish)
        if wish.rootfs is not None:
            await check_ext4(wish.rootfs, "rootfs")
            await check_root(wish.rootfs)
        if wish.work_seed is not None:
            await check_ext4(wish.work_seed, "work-seed")

    async def register(self, wish: Registration, *, progress: Progress) -> ImageManifest:
        """Make an image out of files that are there; see `engine.ports.Images`."""
        await _await(progress("validate", wish.name))
        await self.check_registration(wish)
        base = self.get(wish.base) if wish.base is not None else None
        fs.make_private_dir(self._dir)

        async def fill(work: Path) -> ImageManifest:
            directory = self._dir / base.id if base is not None else None
            return await Register(wish, base, directory, self._known(), work, progress).run()

        with clear_errors(self._dir):
            needed = await in_thread(needed_bytes, wish, self._dir)
            return await self._workshop.make(needed, fill, self._rename_older)

    def _known(self) -> Known:
        return known_kernels((image, self._dir / image.id) for image in self.list())

    def _whole(self, manifest: ImageManifest) -> bool:
        directory = self._dir / manifest.id
        return all(
            (directory / name).is_file() and (directory / name).stat().st_size == entry.size_bytes
            for name, entry in manifest.files.items()
        )

    def _log(self, name: str) -> Path:
        fs.make_private_dir(self._logs)
        log = self._logs / f"image-{name}.log"
        log.write_bytes(b"")
        return log

    def _rename_older(self, manifest: ImageManifest) -> None:
        """Give others of this name, if any, the name ``<name>-<id>``; until then `get` prefers the newest."""
        for other in self.list():
            if other.name == manifest.name and other.id != manifest.id:
                renamed = replace(other, name=_old_name(other))
                path = self._dir / other.id / MANIFEST
                fs.write_atomic(path, msgspec.json.format(msgspec.json.encode(renamed)), mode=0o644)

    async def sweep(self) -> None:
        """Remove what interrupted builds and deletions left, unless a build is running now; idempotent."""
        await self._workshop.sweep()

    def leftovers(self) -> Sequence[tuple[Path, int]]:
        """What `sweep` would remove, and what it takes; nothing while a build runs."""
        return self._workshop.leftovers()

    async def delete(self, image_id: str) -> None:
        """Remove an image's directory: the manifest first, so that a half-removed image is none."""
        directory = self._dir / image_id
        (directory / MANIFEST).unlink(missing_ok=True)
        if directory.exists():
            fs.remove_tree(directory)

    def allocated_bytes(self, image_id: str) -> int:
        """What the image's files take on disk."""
        return sum(fs.allocated_bytes(path) for path in (self._dir / image_id).glob("*"))


def _old_name(image: ImageManifest) -> str:
    """What an image is called when another one takes its name."""
    short = image.name[:_OLD_NAME_CHARS].rstrip("-")
    return f"{short}-{image.id}"


async def _run(build: Build) -> ImageManifest:
    """As `Build.run`; an error that says too little names the log."""
    try:
        return await build.run()
    except (HostLacksError, NotFoundError):
        raise
    except Exception as error:
        detail = getattr(error, "detail", "") or str(error)
        raise HostLacksError(
            f"image {build.name} could not be built: {error}",
            detail=detail[-_DETAIL_CHARS:],
            hint=f"less {build.log}",
        ) from error


async def _await(outcome: object) -> None:
    if hasattr(outcome, "__await__"):
        await outcome
