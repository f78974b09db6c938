"""How work on an image tells the stages that it goes through."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Self

from banger.engine.operations import OperationRun, StageHandle


class ImageStages:
    """Turns the builder's progress calls into stages: a new name ends the stage before."""

    def __init__(self, run: OperationRun) -> None:
        self._run = run
        self._stack = AsyncExitStack()
        self._name = ""
        self._handle: StageHandle | None = None

    async def __call__(self, name: str, detail: str) -> None:
        """Be in stage ``name`` from now on, and show ``detail``."""
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
