"""What differs between distributions in an image build: how a root file system comes to be. The rest of a build is common.

A recipe's key ``distribution`` chooses; a new one is a class with the shape of `Distribution`, an entry in `_ALL` and one in
`banger.images.recipe.PACKAGE_NAMES`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from banger.images.command import Command
from banger.images.debian import Debian
from banger.images.job import Job
from banger.images.package import Package
from banger.images.recipe import LoadedRecipe
from banger.images.void.distribution import Void
from banger.model.errors import InvalidInputError


class Distribution(Protocol):
    """One distribution. Everything but `make` is pure."""

    @property
    def tools(self) -> Sequence[tuple[str, str]]:
        """Programs that `make` needs, with the Debian package of each."""
        ...

    @property
    def name(self) -> str:
        """As recipes and os-release call it."""
        ...

    @property
    def purl(self) -> str:
        """Type and namespace of its packages' URLs, as ``deb/debian``: https://github.com/package-url/purl-spec."""
        ...

    @property
    def databases(self) -> Sequence[str]:
        """The members of the root's tar (``./var/…``) that list what is installed."""
        ...

    def payload(self) -> dict[str, bytes]:
        """The files for every guest of this distribution, by their path below its root."""
        ...

    def locked(self, loaded: LoadedRecipe, images_dir: Path, ref: str) -> str:
        """The SHA-256 of the lock file that the recipe, called ``ref``, is built from; empty where there is none.

        NotFoundError or InvalidInputError where one is needed and missing, damaged, or not for this recipe.
        """
        ...

    def commands(self, job: Job) -> Sequence[Command]:
        """The programs that `make` runs, as it runs them."""
        ...

    async def make(self, job: Job, note: Callable[[str], None]) -> None:
        """Write ``job.tar``, the whole root with ``job.payload`` unpacked in it; ``note`` gets what the programs say, line by line."""
        ...

    def packages(self, found: Mapping[str, bytes]) -> list[Package]:
        """Installed packages by name, from the content of those of `databases` that the root has."""
        ...


_ALL: Mapping[str, Distribution] = {one.name: one for one in (Debian(), Void())}


def distribution(name: str) -> Distribution:
    """The distribution of this name; InvalidInputError."""
    found = _ALL.get(name)
    if found is None:
        raise InvalidInputError(
            f"distribution {name!r} cannot be built",
            hint=f"write distribution = {min(_ALL)!r}; known: {', '.join(sorted(_ALL))}",
        )
    return found


def every() -> Sequence[Distribution]:
    """All that are known."""
    return tuple(_ALL.values())
