"""Operations on images: build and register, which are long and cancellable, and delete, which is short and refused while a VM needs
the image.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Self

from banger.engine.engine import Engine
from banger.engine.operations import OperationRun, StageHandle
from banger.model.errors import RefusedError
from banger.model.manifest import ImageManifest
from banger.model.record import OperationRecord
from banger.model.registration import Registration

log = logging.getLogger(__name__)


class _Stages:
    """Turns the builder's progress calls into stages: a new name ends the stage before."""

    def __init__(self, run: OperationRun) -> None:
        self._run = run
        self._stack = AsyncExitStack()
        self._name = ""
        self._handle: StageHandle | None = None

    async def __call__(self, name: str, detail: str) -> None:
        if name != self._name:
            await self._stack.aclose()
            self._handle = await self._stack.enter_async_context(self._run.stage(name))
            self._name = name
        if self._handle is not None:
            self._handle.say(detail)

    async def __aenter__(self) -> Self:
        await self._stack.__aenter__()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._stack.__aexit__(*exc)  # type: ignore[arg-type]


class ImageWork:
    """Builds, registers and deletes images, one at a time."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._context = engine.context
        self._one = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()

    def build(self, recipe: str, *, name: str | None, force: bool) -> OperationRun:
        """Begin image.build."""
        images = self._context.images

        def make(progress: _Stages) -> Awaitable[ImageManifest]:
            return images.build(recipe, name=name, force=force, progress=progress)

        return self._begin("image.build", name or recipe, make)

    def register(self, wish: Registration) -> OperationRun:
        """Begin image.register."""
        images = self._context.images
        return self._begin(
            "image.register", wish.name, lambda progress: images.register(wish, progress=progress)
        )

    def _begin(
        self, kind: str, name: str, make: Callable[[_Stages], Awaitable[ImageManifest]]
    ) -> OperationRun:
        """Begin an operation that makes an image; they run one after another."""
        run = self._context.board.begin(kind, "", name, cancellable=True)

        async def work() -> None:
            async with self._one, _Stages(run) as progress:
                manifest = await make(progress)
                run.retarget(manifest.id, manifest.name)

        task = asyncio.create_task(run.run(work), name=f"{kind} {name}")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return run

    async def delete(self, ref: str) -> OperationRecord:
        """Delete an image; RefusedError while a VM's overlay lies over it."""
        manifest = self._context.images.get(ref)
        self._refuse_if_used(manifest)
        run = self._context.board.begin("image.delete", manifest.id, manifest.name)

        async def work() -> None:
            async with self._one, run.stage("files"):
                self._refuse_if_used(manifest)
                await self._context.images.delete(manifest.id)

        await run.run(work)
        if run.record.error is not None:
            raise run.record.error.to_error()
        return run.record

    def _refuse_if_used(self, manifest: ImageManifest) -> None:
        users = self._engine.using_image(manifest.id)
        if users:
            names = " ".join(machine.name for machine in users)
            raise RefusedError(
                f"image {manifest.name} is used by {len(users)} VM{'s' if len(users) > 1 else ''}",
                detail=f"used by: {names}",
                hint=f"banger vm delete {names}",
            )

    async def close(self) -> None:
        """Cancel what is being built; the builder undoes it."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
