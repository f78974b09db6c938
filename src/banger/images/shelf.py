"""What images are on this host: one directory each, ``images/<id>`` with a manifest; a name belongs to the newest image that took it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from banger.host import fs
from banger.images import manifests
from banger.images.boot_files import VMLINUX, VMLINUZ, Known, known_kernels
from banger.images.seal import MANIFEST, put_manifest
from banger.model.errors import InvalidInputError, NotFoundError, RefusedError
from banger.model.ids import ID_LENGTH, is_id
from banger.model.machine import BootStack
from banger.model.manifest import ImageManifest, Unusable

DEFAULT_BASE = "debian"
_OLD_NAME_CHARS = 63 - 1 - ID_LENGTH


class Shelf:
    """The images of ``images_dir``. Manifests are cached by the directory's modification time."""

    def __init__(self, images_dir: Path) -> None:
        self._dir = images_dir
        self._cache: dict[str, tuple[int, ImageManifest | Unusable]] = {}

    def list(self) -> list[ImageManifest]:
        """All images, oldest first."""
        found = [one for one in self._read_all() if isinstance(one, ImageManifest)]
        return sorted(found, key=lambda m: (m.created_at, m.id))

    def unusable(self) -> Sequence[Unusable]:
        """Images that are there and cannot be used, with the reason and what mends them."""
        return [one for one in self._read_all() if isinstance(one, Unusable)]

    def _read_all(self) -> Iterator[ImageManifest | Unusable]:
        for entry in os.scandir(self._dir) if self._dir.is_dir() else ():
            found = self._read(entry) if is_id(entry.name) else None
            if found is not None:
                yield found

    def _read(self, entry: os.DirEntry[str]) -> ImageManifest | Unusable | None:
        path = Path(entry.path) / MANIFEST
        try:
            stamp = path.stat().st_mtime_ns
            cached = self._cache.get(entry.name)
            if cached is None or cached[0] != stamp:
                cached = (stamp, manifests.read(path))
                self._cache[entry.name] = cached
        except OSError:
            return None  # not sealed: it is being deleted, or its deletion was interrupted
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
            for one in self.unusable():
                if ref in {one.id, one.name}:
                    raise one.to_error()
            shown = ref if len(ref) <= 64 else ref[:61] + "..."
            raise NotFoundError(
                f"no image {shown!r}",
                hint=f"banger image build {ref if ref.isalnum() else 'debian'}",
            )
        return found[0]

    def boot_stack(self, image_id: str) -> BootStack:
        """The files of an image; NotFoundError if its directory or manifest is gone."""
        manifest, directory = self.by_id(image_id), self._dir / image_id
        return BootStack(
            kernel=directory / VMLINUX,
            initramfs=directory / "initramfs.img",
            rootfs=directory / "rootfs.img",
            work_seed=directory / "work-seed.img",
            cmdline=manifest.cmdline,
            manifest=manifest,
            bzimage=directory / VMLINUZ if VMLINUZ in manifest.files else None,
        )

    def by_id(self, image_id: str) -> ImageManifest:
        """The manifest of an image; NotFoundError if its directory or manifest is gone, HostLacksError if it cannot be used."""
        for one in self._read_all():
            if one.id == image_id and isinstance(one, ImageManifest):
                return one
            if one.id == image_id and isinstance(one, Unusable):
                raise one.to_error()
        raise NotFoundError(
            f"image {image_id} is gone or damaged",
            detail=str(self._dir / image_id),
            hint="banger image build debian",
        )

    def allocated_bytes(self, image_id: str) -> int:
        """What the image's files take on disk."""
        return sum(fs.allocated_bytes(path) for path in (self._dir / image_id).glob("*"))

    def _refuse_taken(self, name: str, *, replace_it: bool) -> None:
        taken = next((image for image in self.list() if image.name == name), None)
        if taken is not None and not replace_it:
            raise name_taken(taken)

    def _kernel_source(self, ref: str | None) -> ImageManifest | None:
        """The image that gives its boot stack: the one that was named, else one of banger's own, else the newest."""
        if ref is not None:
            return self.get(ref)
        own = [image for image in self.list() if image.name == DEFAULT_BASE]
        found = own or self.list()
        return found[-1] if found else None

    def _known(self) -> Known:
        return known_kernels((image, self._dir / image.id) for image in self.list())

    def _whole(self, manifest: ImageManifest) -> bool:
        directory = self._dir / manifest.id
        return all(
            (directory / name).is_file() and (directory / name).stat().st_size == entry.size_bytes
            for name, entry in manifest.files.items()
        )

    def _rename_older(self, manifest: ImageManifest) -> None:
        """Give others of this name, if any, the name ``<name>-<id>``; until then `get` prefers the newest."""
        for other in self.list():
            if other.name == manifest.name and other.id != manifest.id:
                renamed = replace(other, name=_old_name(other))
                put_manifest(self._dir / other.id, renamed)


def _old_name(image: ImageManifest) -> str:
    """What an image is called when another one takes its name."""
    short = image.name[:_OLD_NAME_CHARS].rstrip("-")
    return f"{short}-{image.id}"


def name_taken(image: ImageManifest) -> RefusedError:
    """What to say of a name that another image has."""
    return RefusedError(
        f"image name {image.name!r} is taken",
        hint=f"choose another --name, or add --replace: then {image.id} is called {_old_name(image)}",
    )
