"""Operations on images: build, register, import, export and promote, which are long and cancellable, delete, which is short and refused while
a VM needs the image, and what images need without being asked: work seeds renewed, prebuilt images taken in.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from banger.engine.engine import Engine
from banger.engine.image_stages import ImageStages
from banger.engine.machine import Machine
from banger.engine.operations import OperationRun
from banger.engine.promote import promote
from banger.model.errors import BangerError, HostLacksError, NotFoundError, RefusedError
from banger.model.manifest import ImageManifest
from banger.model.promotion import Promotion
from banger.model.record import OperationRecord
from banger.model.registration import Registration
from banger.model.transfer import ImageExport, ImageImport

log = logging.getLogger(__name__)


class ImageWork:
    """Builds, registers, imports, exports and deletes images, one at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._context = engine.context
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._coming: dict[str, OperationRun] = {}

    def build(self, recipe: str, *, name: str | None, force: bool) -> OperationRun:
        """Begin image.build."""
        images = self._context.images

        def make(progress: ImageStages) -> Awaitable[ImageManifest]:
            return images.build(recipe, name=name, force=force, progress=progress)

        return self._begin("image.build", name or recipe, make)

    def register(self, wish: Registration) -> OperationRun:
        """Begin image.register."""
        images = self._context.images
        return self._begin(
            "image.register", wish.name, lambda progress: images.register(wish, progress=progress)
        )

    async def promote(self, machine: Machine, wish: Promotion) -> OperationRecord:
        """Begin vm.promote; RefusedError if the VM runs or the name is taken."""
        await self._context.images.check_promotion(wish)
        return self._engine.promote(
            machine, lambda run: promote(self._context, machine, run, wish, self._one)
        )

    def adopt(self, name: str, directory: Path) -> OperationRun:
        """Begin image.adopt: a prebuilt image is taken in."""
        images = self._context.images
        run = self._begin(
            "image.adopt", name, lambda progress: images.adopt(name, directory, progress=progress)
        )
        self._coming[name] = run
        return run

    def coming(self, name: str) -> OperationRun | None:
        """The operation that takes in the prebuilt image of this name just now."""
        run = self._coming.get(name)
        return run if run is not None and not run.record.state.final else None

    def begin_healing(self) -> None:
        """Let `heal` go on beside everything else until `close`."""
        task = asyncio.create_task(self.heal(), name="work seeds")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def heal(self) -> None:
        """Bring work seeds up to date, one after another, as VMs are made of them; for ever. What fails is tried again with the next VM."""
        while True:
            image_id = await self._context.stale_seeds.get()
            try:
                await self._renew_seed(image_id)
            except BangerError as error:
                log.warning("work seed of image %s was not renewed: %s", image_id, error)

    async def _renew_seed(self, image_id: str) -> None:
        images = self._context.images
        async with self._one:
            if (await images.seed(image_id)).current:
                return  # another VM of the same image was first
            manifest = images.boot_stack(image_id).manifest
            run = self._context.board.begin("image.refresh", image_id, manifest.name)

            async def work() -> None:
                async with run.stage("seed") as stage:
                    stage.detail = await images.refresh_seed(image_id)

            await run.run(work)

    def import_image(self, wish: ImageImport, name: str) -> OperationRun:
        """Begin image.import; ``name`` is what `Images.check_import` said."""
        images = self._context.images
        return self._begin(
            "image.import", name, lambda progress: images.import_image(wish, progress=progress)
        )

    def export_image(self, wish: ImageExport, name: str) -> OperationRun:
        """Begin image.export of the image called ``name``."""
        images = self._context.images
        return self._begin(
            "image.export", name, lambda progress: images.export_image(wish, progress=progress)
        )

    def _begin(
        self, kind: str, name: str, make: Callable[[ImageStages], Awaitable[ImageManifest]]
    ) -> OperationRun:
        """Begin an operation that makes an image; they run one after another."""
        run = self._context.board.begin(kind, "", name, cancellable=True)

        async def work() -> None:
            async with self._one, ImageStages(run) as progress:
                manifest = await make(progress)
                run.retarget(manifest.id, manifest.name)

        task = asyncio.create_task(run.run(work), name=f"{kind} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    async def delete(self, ref: str) -> OperationRecord:
        """Delete an image, also one that cannot be used or is half deleted; RefusedError while a VM's overlay lies over it."""
        image_id, name = self._find(ref)
        self._refuse_if_used(image_id, name)
        run = self._context.board.begin("image.delete", image_id, name)

        async def work() -> None:
            async with self._one, ImageStages(run) as progress:
                await self._context.images.delete(
                    image_id,
                    unused=lambda: self._refuse_if_used(image_id, name),
                    progress=progress,
                )

        await run.run(work)
        if run.record.error is not None:
            raise run.record.error.to_error()
        return run.record

    def _find(self, ref: str) -> tuple[str, str]:
        """Id and name of an image."""
        images = self._context.images
        try:
            manifest = images.get(ref)
        except HostLacksError:  # it cannot be used
            one = next(one for one in images.unusable() if ref in {one.id, one.name})
            return one.id, one.name or one.id
        except NotFoundError:
            if ref not in images.half_deleted():
                raise
            return ref, ref
        return manifest.id, manifest.name

    def _refuse_if_used(self, image_id: str, name: str) -> None:
        users = self._engine.using_image(image_id)
        if users:
            names = " ".join(machine.name for machine in users)
            raise RefusedError(
                f"image {name} is used by {len(users)} VM{'s' if len(users) > 1 else ''}",
                detail=f"used by: {names}",
                hint=f"banger vm delete {names}",
            )

    async def close(self) -> None:
        """Cancel what is being built; the builder undoes it."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
