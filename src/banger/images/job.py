"""What a distribution is told about the build that it makes a root file system for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from banger.images.recipe import LoadedRecipe


@dataclass(frozen=True, slots=True)
class Job:
    """A root file system to be made in the private directory ``work``, which the caller removes.

    ``mirrors`` are the addresses to take packages from; with none, the tools' own default. ``epoch_s`` is every time stamp.
    ``downloads`` is the download cache (`banger.images.downloads`), if there is one.
    """

    loaded: LoadedRecipe
    work: Path
    mirrors: tuple[str, ...]
    epoch_s: int
    downloads: Path | None = None

    @property
    def tar(self) -> Path:
        """The root file system, to be written."""
        return self.work / "root.tar"

    @property
    def payload(self) -> Path:
        """The tar of banger's own files, to be unpacked in the root; it is there."""
        return self.work / "payload.tar"

    @property
    def scratch(self) -> Path:
        """An empty directory for temporary files; it is there."""
        return self.work / "tmp"

    @property
    def fetched(self) -> Path:
        """The directory that packages are downloaded into."""
        return self.work / "fetched"
