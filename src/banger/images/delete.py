"""The end of an image: its manifest goes first, by which it is one, then its directory."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path

from banger.host import fs
from banger.host.threads import in_thread
from banger.images.seal import MANIFEST
from banger.images.workshop import Workshop
from banger.model.errors import HostLacksError

Progress = Callable[[str, str], Awaitable[None] | None]
Unused = Callable[[], None]
_WAIT_S = 30.0  # a work seed that is made again is through by then


async def delete(workshop: Workshop, directory: Path, unused: Unused, progress: Progress) -> None:
    """Delete the image in ``directory``, or what an earlier try left of it; see `engine.ports.Images.delete`."""
    async with workshop.hold(_WAIT_S):
        await _await(progress("manifest", ""))
        unused()  # nothing comes in between: who asks for the image later finds none
        _do(directory, (directory / MANIFEST).unlink, missing_ok=True)
        await _await(progress("files", ""))
        await in_thread(_do, directory, fs.remove_tree, directory)


def _do(directory: Path, step: Callable[..., None], *args: object, **kwargs: object) -> None:
    """Take one step, whose error is told with the way to go on."""
    try:
        step(*args, **kwargs)
    except OSError as error:
        raise HostLacksError(
            f"image {directory.name} could not be deleted wholly",
            detail=str(error),
            hint=f"banger image delete {directory.name}",
        ) from error


async def _await(outcome: object) -> None:
    if hasattr(outcome, "__await__"):
        await outcome
