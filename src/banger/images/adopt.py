"""A prebuilt image, as a runtime bundle holds it, taken into the catalogue: a directory of the files of an image with its manifest."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path

from banger.host import fs
from banger.host.holes import drop_zeros
from banger.host.threads import stoppable
from banger.images.build import FILES
from banger.images.manifests import manifest_of
from banger.images.seal import MANIFEST, image_id, put_manifest
from banger.model import clock
from banger.model.errors import InvalidInputError
from banger.model.ids import is_id
from banger.model.manifest import TAKEN, HistoryEntry, ImageManifest, Unusable
from banger.model.units import format_size

Progress = Callable[[str, str], Awaitable[None] | None]
_NEEDED = {"rootfs.img", "vmlinux", "initramfs.img"}


def look(directory: Path) -> ImageManifest:
    """The manifest of a prebuilt image; InvalidInputError if that is not one of this banger, or names files that no image has."""
    try:
        found = manifest_of(directory)
    except OSError as error:
        raise _no_image(directory, str(error)) from error
    if isinstance(found, Unusable):
        raise _no_image(directory, found.why)
    if set(found.files) - set(FILES) or _NEEDED - set(found.files) or not is_id(found.id):
        raise _no_image(directory, f"its files are {', '.join(sorted(found.files))}")
    return found


def _no_image(directory: Path, why: str) -> InvalidInputError:
    return InvalidInputError(
        f"{directory} holds no image", detail=why, hint=f"cat {directory / MANIFEST}"
    )


@dataclass(slots=True)
class Adopt:
    """One run in the empty directory ``work``; what is in ``directory`` is copied, and compared with its manifest's digests."""

    name: str
    directory: Path
    work: Path
    progress: Progress

    async def run(self) -> ImageManifest:
        """Make all files and the manifest in ``work``."""
        manifest = look(self.directory)
        for name, entry in manifest.files.items():
            await self._say("files", f"{name}, {format_size(entry.size_bytes)}")
            source, target = self.directory / name, self.work / name
            await stoppable(fs.clone_file, source, target)
            await stoppable(drop_zeros, target)
            found = await stoppable(fs.sparse_digest, target)
            if found != entry.digest or fs.length_bytes(target) != entry.size_bytes:
                raise InvalidInputError(
                    f"{source} is not the file that its manifest states",
                    detail=f"its digest is {found}, stated is {entry.digest}",
                    hint="banger runtime status",
                )
            target.chmod(0o444)
        taken = HistoryEntry(clock.now(), TAKEN, manifest.id)
        made = replace(manifest, name=self.name, history=(*manifest.history, taken))
        made = replace(made, id=image_id(made))
        put_manifest(self.work, made)
        await self._say("seal", made.id)
        return made

    async def _say(self, stage: str, detail: str) -> None:
        outcome = self.progress(stage, detail)
        if outcome is not None:
            await outcome
