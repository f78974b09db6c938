"""Making, changing, moving and removing the images on this host."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import msgspec

from banger.host import fs
from banger.host.threads import in_thread
from banger.images import home, manifests, npm
from banger.images.adopt import Adopt, look
from banger.images.build import SPACE_BYTES, Build, Progress, inputs_digest
from banger.images.complaints import says_full
from banger.images.delete import Unused, delete
from banger.images.distributions import distribution
from banger.images.downloads import Downloads
from banger.images.exporting import Exporter, check_target, told_plainly
from banger.images.ext4 import check_ext4
from banger.images.foreign import Base
from banger.images.importing import Importer, exported_name, import_kind, is_foreign
from banger.images.inputs import check_inputs, clear_errors, needed_bytes
from banger.images.inventory import diff, sbom
from banger.images.mend import repair
from banger.images.plan import explain_build, not_made
from banger.images.promote import RESERVE_BYTES, Promote
from banger.images.recipe import LoadedRecipe, load_recipe
from banger.images.register import Register
from banger.images.seeds import SEED, Seeds
from banger.images.shelf import Shelf, name_taken
from banger.images.workshop import Workshop
from banger.model.errors import HostLacksError, InvalidInputError, NotFoundError
from banger.model.ids import check_name
from banger.model.image_plan import ImageDiff, ImagePlan
from banger.model.machine import SeedState
from banger.model.manifest import MANIFEST_VERSION, ImageManifest
from banger.model.promotion import Promotion, PromotionSource
from banger.model.registration import Registration
from banger.model.transfer import ImageExport, ImageImport

IMPORT_BYTES = (
    64 << 20
)  # what an import asks for at once; what it needs is known when the layers were read
_DETAIL_CHARS = 3000


class ImageCatalog(Shelf):
    """See `engine.ports.Images`."""

    def __init__(
        self,
        images_dir: Path,
        log_dir: Path,
        *,
        mirror: str | None = None,
        void_mirror: str | None = None,
        agent: Path | None = None,
        cache_dir: Path | None = None,
    ) -> None:
        super().__init__(images_dir)
        self._logs = log_dir
        self._mirrors = {"debian": mirror, "void": void_mirror}
        self._agent = agent
        self._downloads = Downloads(cache_dir / "packages") if cache_dir is not None else None
        self._tools = cache_dir / "tools" if cache_dir is not None else None
        self._workshop = Workshop(images_dir)
        self._seeds = Seeds(images_dir, self._workshop, self.by_id)

    def check_recipe(self, recipe: str, *, name: str | None) -> None:
        """Read the recipe, and its lock file if it needs one, for their errors."""
        self._load(recipe)
        if name is not None:
            check_name(name, what="image")

    def _load(self, ref: str) -> LoadedRecipe:
        loaded = load_recipe(ref)
        maker = distribution(loaded.recipe.distribution)
        return msgspec.structs.replace(loaded, lock_sha256=maker.locked(loaded, self._dir, ref))

    def _mirror_of(self, loaded: LoadedRecipe) -> str | None:
        return self._mirrors.get(loaded.recipe.distribution)

    async def build(
        self, recipe: str, *, name: str | None, force: bool, progress: Progress
    ) -> ImageManifest:
        """Build an image, or find that the one of this name would come out the same."""
        loaded = await in_thread(self._load, recipe)
        image_name = name or loaded.recipe.name
        await _await(progress("resolve", image_name))
        current = await in_thread(self._same, loaded, image_name)
        if current and not force:
            await _await(progress("resolve", f"{image_name} is up to date"))
            return current

        async def fill(work: Path) -> ImageManifest:
            log = self._log(image_name)
            return await _run(self._build(loaded, image_name, recipe, work, log, progress))

        return await self._workshop.make(SPACE_BYTES, fill, self._rename_older)

    def _same(self, loaded: LoadedRecipe, name: str) -> ImageManifest | None:
        """The image that a build would make again."""
        current = next((image for image in reversed(self.list()) if image.name == name), None)
        digest = inputs_digest(loaded, self._mirror_of(loaded), self._agent)
        fits = current is not None and current.inputs_digest == digest and self._whole(current)
        return current if fits else None

    def _build(
        self,
        loaded: LoadedRecipe,
        name: str,
        ref: str,
        work: Path,
        log: Path,
        progress: Progress,
    ) -> Build:
        downloads = self._downloads.directory if self._downloads is not None else None
        tools = self._tools or work / "tools"
        known = self._known()
        return Build(
            loaded,
            name,
            self._mirror_of(loaded),
            work,
            log,
            progress,
            self._agent,
            ref,
            known,
            downloads,
            tools,
        )

    def plan(self, recipe: str, *, name: str | None) -> ImagePlan:
        """What `build` would do; nothing is made. Errors as of `check_recipe`."""
        self.check_recipe(recipe, name=name)
        loaded = self._load(recipe)
        image_name = name or loaded.recipe.name
        work = not_made(self._dir)
        build = self._build(loaded, image_name, recipe, work, work / "log", lambda *_: None)
        same = self._same(loaded, image_name)
        return explain_build(build, same.id if same is not None else "")

    async def check_registration(self, wish: Registration) -> None:
        """Look at all that was given, as far as that is quick; see `engine.ports.Images`."""
        self._refuse_taken(wish.name, replace_it=wish.replace)
        if wish.base is not None:
            self.get(wish.base)
        await in_thread(check_inputs, wish)
        if wish.rootfs is not None:
            await is_foreign(wish.rootfs)
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
            if wish.rootfs is not None and await is_foreign(wish.rootfs):
                return await self._importer(work, base, progress).register(wish)
            return await Register(wish, base, directory, self._known(), work, progress).run()

        with clear_errors(self._dir):
            needed = await in_thread(needed_bytes, wish, self._dir)
            return await self._workshop.make(needed, fill, self._rename_older)

    async def check_promotion(self, wish: Promotion) -> None:
        """RefusedError if the name is taken; see `engine.ports.Images`."""
        self._refuse_taken(wish.name, replace_it=wish.replace)

    async def promote(
        self, wish: Promotion, source: PromotionSource, *, progress: Progress
    ) -> ImageManifest:
        """Make an image out of the disks of a VM; see `engine.ports.Images`."""
        self._refuse_taken(wish.name, replace_it=wish.replace)
        base = self.by_id(source.image_id)

        async def fill(work: Path) -> ImageManifest:
            return await Promote(wish, source, base, self._dir / base.id, work, progress).run()

        with clear_errors(self._dir, "promote"):
            needed = source.needed_bytes + RESERVE_BYTES
            if wish.with_work and not fs.supports_reflink(self._dir):
                needed += fs.allocated_bytes(source.work)
            return await self._workshop.make(needed, fill, self._rename_older)

    async def adopt(self, name: str, directory: Path, *, progress: Progress) -> ImageManifest:
        """Take a prebuilt image in; see `engine.ports.Images`."""
        self._refuse_taken(name, replace_it=False)
        manifest = look(directory)
        fs.make_private_dir(self._dir)

        async def fill(work: Path) -> ImageManifest:
            return await Adopt(name, directory, work, progress).run()

        with clear_errors(self._dir):
            needed = sum(fs.allocated_bytes(directory / file) for file in manifest.files)
            return await self._workshop.make(needed, fill, self._rename_older)

    def seed_word(self, manifest: ImageManifest) -> Literal["current", "older", "none"]:
        """How the image's work seed is, as far as its manifest says."""
        if SEED not in manifest.files:
            return "none"
        return "current" if manifest.seed == home.fingerprint() else "older"

    async def seed(self, image_id: str) -> SeedState:
        """Make sure that the image has a whole work seed; see `engine.ports.Images`."""
        with clear_errors(self._dir):
            return await self._seeds.ready(self.by_id(image_id))

    async def complete_home(self, disk: Path, image_id: str) -> str:
        """Add to a new work disk what its seed lacked; see `engine.ports.Images`."""
        await repair(disk, f"work disk {disk}", hint=f"e2fsck -f {disk}")
        added = await home.complete(disk)
        if self.by_id(image_id).guest_grows_work:
            await home.make_growable(disk)
        return " ".join(added)

    async def refresh_seed(self, image_id: str) -> str:
        """Bring the image's work seed up to date; see `engine.ports.Images`."""
        with clear_errors(self._dir):
            return await self._seeds.refresh(image_id)

    async def keep_up(self) -> Sequence[str]:
        """Bring manifests of older versions up to date and finish what was cut short; sentences about it and about images that cannot be used."""
        await self._seeds.recover_all(self.list())
        said = [
            f"manifest of image {image.name} brought up to version {MANIFEST_VERSION}"
            for image in self.list()
            if manifests.upgrade(self._dir / image.id, image)
        ]
        return said + [
            f"image {one.name or one.id} cannot be used: {one.why}; {one.hint}"
            for one in self.unusable()
        ]

    async def check_import(self, wish: ImageImport) -> str:
        """Look at what is to be imported, as far as that is quick; the name that the image would get. See `engine.ports.Images`."""
        kind = await in_thread(import_kind, wish.path)
        found = await in_thread(exported_name, wish.path) if kind == "export" else None
        name = wish.name or found or wish.default_name
        taken = next((image for image in self.list() if image.name == name), None)
        if taken is not None and not wish.replace and kind != "export":
            raise name_taken(taken)
        if wish.kernel_from is not None:
            self.get(wish.kernel_from)
        return name

    async def import_image(self, wish: ImageImport, *, progress: Progress) -> ImageManifest:
        """Make an image out of what was exported or saved elsewhere; see `engine.ports.Images`."""
        await _await(progress("validate", wish.path.name))
        name = await self.check_import(wish)
        fs.make_private_dir(self._dir)

        async def fill(work: Path) -> ImageManifest:
            importer = self._importer(work, self._kernel_source(wish.kernel_from), progress)
            if await in_thread(import_kind, wish.path) != "export":
                return await importer.import_root(wish, name)
            made = await importer.import_file(wish)
            taken = next((image for image in self.list() if image.name == made.name), None)
            if taken is not None and taken.id != made.id and not wish.replace:
                raise name_taken(taken)
            return made

        with clear_errors(self._dir):
            return await self._workshop.make(IMPORT_BYTES, fill, self._rename_older)

    async def check_export(self, wish: ImageExport) -> ImageManifest:
        """The image that is to be exported; see `engine.ports.Images`."""
        manifest = self.get(wish.image)
        await in_thread(check_target, wish)
        return manifest

    async def export_image(self, wish: ImageExport, *, progress: Progress) -> ImageManifest:
        """Write an image to a file or an OCI layout; see `engine.ports.Images`."""
        manifest = await self.check_export(wish)
        try:
            async with self._workshop.bench(0.0) as scratch:
                await Exporter(wish, manifest, self._dir / manifest.id, scratch, progress).run()
        except OSError as error:
            raise told_plainly(error, wish.path) from error
        return manifest

    def _importer(self, work: Path, base: ImageManifest | None, progress: Progress) -> Importer:
        found = Base(base, self._dir / base.id) if base is not None else None
        return Importer(work, found, self._known(), progress)

    def _log(self, name: str) -> Path:
        fs.make_private_dir(self._logs)
        log = self._logs / f"image-{name}.log"
        log.write_bytes(b"")
        return log

    async def sweep(self) -> None:
        """Remove what interrupted builds and deletions left, unless a build is running now; idempotent."""
        await self._workshop.sweep()

    async def sbom(self, image_id: str) -> bytes:
        """The image's inventory as SPDX 2.3 in JSON."""
        return await sbom(self._dir / image_id, self.get(image_id))

    async def diff(self, before: str, after: str) -> ImageDiff:
        """How the image ``after`` differs from ``before`` (ids)."""
        found = [(self._dir / one, self.get(one)) for one in (before, after)]
        return await diff(found[0], found[1])

    def downloads(self) -> tuple[Path, int] | None:
        """The download cache and what it takes, packages and tools; None if there is none."""
        cache, tools = self._downloads, self._tools
        if cache is None or tools is None:
            return None
        size_bytes = cache.size_bytes() + npm.kept_bytes(tools)
        return (cache.directory.parent, size_bytes) if size_bytes else None

    def clear_downloads(self) -> None:
        """Empty the download cache; idempotent."""
        if self._downloads is not None:
            self._downloads.clear()
        if self._tools is not None:
            npm.clear(self._tools)

    def leftovers(self) -> Sequence[tuple[Path, int]]:
        """What `sweep` would remove, and what it takes; nothing while a build runs."""
        return self._workshop.leftovers()

    def half_deleted(self) -> Sequence[str]:
        """Images whose deletion broke off, by id; see `engine.ports.Images`."""
        return self._workshop.half_deleted()

    async def delete(self, image_id: str, *, unused: Unused, progress: Progress) -> None:
        """Delete an image; see `engine.ports.Images`."""
        await delete(self._workshop, self._dir / image_id, unused, progress)


async def _run(build: Build) -> ImageManifest:
    """As `Build.run`; an error that says too little names the log."""
    try:
        return await build.run()
    except (HostLacksError, InvalidInputError, NotFoundError) as error:
        raise type(error)(
            f"image {build.name} could not be built: {error.what}",
            detail=error.detail,
            hint=error.hint,
        ) from error
    except Exception as error:
        detail = getattr(error, "detail", "") or str(error)
        if says_full(f"{error} {detail}"):
            raise HostLacksError(
                f"image {build.name} could not be built: no space in {build.work.parent}",
                detail=detail[-_DETAIL_CHARS:],
                hint=f"free some, or set BANGER_STATE_DIR to another disk; see: df -h {build.work.parent}",
            ) from error
        raise HostLacksError(
            f"image {build.name} could not be built: {error}",
            detail=detail[-_DETAIL_CHARS:],
            hint=f"less {build.log}",
        ) from error


async def _await(outcome: object) -> None:
    if hasattr(outcome, "__await__"):
        await outcome
