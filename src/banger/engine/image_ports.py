"""What the engine asks of the catalogue beside building: promotion, prebuilt images, work seeds, upkeep. A part of `banger.engine.ports.Images`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from banger.model.machine import SeedState
from banger.model.manifest import ImageManifest, Unusable
from banger.model.promotion import Promotion, PromotionSource

BuildProgress = Callable[[str, str], Awaitable[None] | None]


class ImageUpkeep(Protocol):
    """See `banger.engine.ports.Images`."""

    async def check_promotion(self, wish: Promotion) -> None:
        """Raise RefusedError if the name is taken."""
        ...

    async def promote(
        self, wish: Promotion, source: PromotionSource, *, progress: BuildProgress
    ) -> ImageManifest:
        """Make an image out of the disks of a VM at rest; progress and interruption as of `build`."""
        ...

    async def adopt(self, name: str, directory: Path, *, progress: BuildProgress) -> ImageManifest:
        """Take a prebuilt image in under a name that is free; progress and interruption as of `build`."""
        ...

    def seed_word(self, manifest: ImageManifest) -> Literal["current", "older", "none"]:
        """How the image's work seed is, as far as its manifest says."""
        ...

    async def seed(self, image_id: str) -> SeedState:
        """Make sure that the image has a whole work seed: one that is missing or damaged is made again out of the image's /root.

        HostLacksError for a damaged one that had content of its own.
        """
        ...

    async def complete_home(self, disk: Path, image_id: str) -> str:
        """Add to the new work disk ``disk``, a clone of a seed that is not current, what it lacks; what that was. Nothing is mounted."""
        ...

    async def refresh_seed(self, image_id: str) -> str:
        """Bring the image's work seed up to date for the VMs to come; a few words. Those that are cloned just now are not disturbed."""
        ...

    def unusable(self) -> Sequence[Unusable]:
        """Images that are there and cannot be used."""
        ...

    async def keep_up(self) -> Sequence[str]:
        """Once at start-up: bring manifests of older versions up to date; sentences about it, and about images that cannot be used."""
        ...
