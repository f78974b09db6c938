"""An image written to one file, or to an OCI layout that container engines read and from which banger makes a bootable image again.

The layout's image has one layer, the root file system, read out of the ext4 without a mount. Beside it lies a blob
with the boot stack and the work seed, which annotations of the index name: to container engines the layout holds one image.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tarfile
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, Any, Final, cast

from banger.host import fs
from banger.host.threads import in_thread, stoppable
from banger.images.dump import check_whole, dump_tar
from banger.images.foreign import ROOTFS
from banger.images.image_file import write_image
from banger.images.oci import BOOT_DIGEST, BOOT_SIZE, REF_NAME
from banger.images.plain import Counted
from banger.images.sandbox import check_sandbox
from banger.images.seal import image_id
from banger.model.errors import HostLacksError, InvalidInputError, NotFoundError, RefusedError
from banger.model.manifest import ImageManifest
from banger.model.transfer import ImageExport
from banger.model.units import format_size

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

Progress = Callable[[str, str], Awaitable[None] | None]
Json = dict[str, Any]
_MANIFEST: Final = "application/vnd.oci.image.manifest.v1+json"
_CONFIG: Final = "application/vnd.oci.image.config.v1+json"
_LAYER: Final = "application/vnd.oci.image.layer.v1.tar+zstd"
_PIECE_BYTES: Final = 1 << 20


def check_target(wish: ImageExport) -> None:
    """RefusedError if something is at the target; NotFoundError or InvalidInputError if nothing can be written there."""
    parent = wish.path.parent
    if not parent.is_dir():
        raise NotFoundError(f"there is no directory {parent}", hint=f"mkdir -p {parent}")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise InvalidInputError(
            f"the daemon may not write in {parent}",
            detail=f"the daemon's user id is {os.geteuid()}",
            hint=f"ls -ld {parent}",
        )
    there = wish.path.exists() or wish.path.is_symlink()
    if there and (wish.path.is_dir() or not wish.replace):
        what = "a directory, which is not replaced" if wish.path.is_dir() else "there already"
        hint = f"choose another name than {wish.path}" + ("" if wish.path.is_dir() else ", or add --replace")  # fmt: skip
        raise RefusedError(f"{wish.path} is {what}", hint=hint)


def portable(manifest: ImageManifest) -> ImageManifest:
    """``manifest`` as it was sealed: an image that lost its name to a newer one is called ``<name>-<id>`` here, and so again there."""
    for name in (manifest.name, manifest.name.removesuffix(f"-{manifest.id}")):
        candidate = replace(manifest, name=name)
        if image_id(candidate) == manifest.id:
            return candidate
    return replace(manifest, id=image_id(manifest))


@dataclass(slots=True)
class Exporter:
    """One export of the image in ``directory``; ``scratch`` is an empty directory on banger's own disk."""

    wish: ImageExport
    manifest: ImageManifest
    directory: Path
    scratch: Path
    progress: Progress

    async def run(self) -> None:
        """Write the target, which is whole or not there."""
        if self.wish.format == "banger":
            await self._say("files", self.wish.path.name)
            await stoppable(self._write_file)
            await self._say("files", format_size(fs.length_bytes(self.wish.path)))
            return
        await check_sandbox()
        await self._say("rootfs", "read")
        rootfs, tar = self.directory / ROOTFS, self.scratch / "root.tar"
        await check_whole(rootfs)
        await dump_tar(rootfs, {"/": "."}, tar, self.scratch)
        if self.wish.path.suffix == ".tar":
            layout = self.scratch / "layout"
            await in_thread(layout.mkdir)
            await self._layout(layout, tar)
            await self._say("files", self.wish.path.name)
            await stoppable(self._write_tar, layout)
            return
        await in_thread(fs.sweep_temporaries, self.wish.path.parent)
        with fs.temporary_directory(self.wish.path.parent) as own:
            layout = own / "layout"
            layout.mkdir()
            await self._layout(layout, tar)
            await in_thread(layout.rename, self.wish.path)

    async def _say(self, stage: str, detail: str) -> None:
        outcome = self.progress(stage, detail)
        if outcome is not None:
            await outcome

    def _write_file(self, *, between: fs.Between) -> None:
        with fs.unseen_file(self.wish.path, replace=self.wish.replace) as file:
            write_image(file, portable(self.manifest), self.directory, list(self.manifest.files), between=between)  # fmt: skip

    def _write_tar(self, layout: Path, *, between: fs.Between) -> None:
        with (
            fs.unseen_file(self.wish.path, replace=self.wish.replace) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.GNU_FORMAT) as archive,
        ):
            for path in sorted(layout.rglob("*")):
                between()
                info = tarfile.TarInfo(str(path.relative_to(layout)))
                info.mode = 0o755 if path.is_dir() else 0o644
                if path.is_dir():
                    info.type = tarfile.DIRTYPE
                    archive.addfile(info)
                else:
                    info.size = path.stat().st_size
                    with path.open("rb") as source:
                        archive.addfile(info, source)

    async def _layout(self, layout: Path, tar: Path) -> None:
        blobs = layout / "blobs" / "sha256"
        await in_thread(blobs.mkdir, parents=True)
        await self._say("layer", "compress")
        layer, diff_id = await stoppable(_pack_layer, tar, blobs)
        await in_thread(tar.unlink)
        await self._say("layer", format_size(layer["size"]))
        await self._say("boot", "boot stack and work seed")
        boot = await stoppable(self._pack_boot, blobs)
        await in_thread(self._documents, layout, layer, diff_id, boot)

    def _pack_boot(self, blobs: Path, *, between: fs.Between) -> Json:
        path = blobs / ".boot"
        names = [name for name in self.manifest.files if name != ROOTFS]
        with path.open("xb") as file:
            write_image(file, portable(self.manifest), self.directory, names, between=between)
        return _place(path, blobs, between)

    def _documents(self, layout: Path, layer: Json, diff_id: str, boot: Json) -> None:
        blobs = layout / "blobs" / "sha256"
        platform = {"architecture": "amd64", "os": "linux"}
        name = portable(self.manifest).name
        config = _put(
            blobs,
            _CONFIG,
            {
                **platform,
                "config": {
                    "Cmd": ["/sbin/init"],
                    "Labels": {"org.opencontainers.image.title": name},
                },
                "rootfs": {"type": "layers", "diff_ids": [f"sha256:{diff_id}"]},
            },
        )
        manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": config, "layers": [layer]}
        image = _put(blobs, _MANIFEST, manifest)
        index = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.index.v1+json",
            "manifests": [{**image, "platform": platform, "annotations": {REF_NAME: name}}],
            "annotations": {BOOT_DIGEST: boot["digest"], BOOT_SIZE: str(boot["size"])},
        }
        (layout / "index.json").write_bytes(_json(index))
        (layout / "oci-layout").write_bytes(_json({"imageLayoutVersion": "1.0.0"}))


def _json(content: Json) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


def _put(blobs: Path, kind: str, content: Json) -> Json:
    data = _json(content)
    digest = hashlib.sha256(data).hexdigest()
    (blobs / digest).write_bytes(data)
    return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}


def _place(path: Path, blobs: Path, between: fs.Between) -> Json:
    """Call the blob in ``path`` by its digest; the descriptor, without a type."""
    size_bytes = path.stat().st_size
    with path.open("rb") as file:
        counted = Counted(file, size_bytes, str(path), between=between)
        counted.drain()
    path.rename(blobs / counted.digest)
    return {"digest": f"sha256:{counted.digest}", "size": size_bytes}


def _pack_layer(tar: Path, blobs: Path, *, between: fs.Between) -> tuple[Json, str]:
    """The layer's descriptor, and the digest of the tar in it."""
    path = blobs / ".layer"
    with tar.open("rb") as source, zstd.open(path, "wb") as packed:
        counted = Counted(source, tar.stat().st_size, str(tar), between=between)
        shutil.copyfileobj(cast("IO[bytes]", counted), cast("IO[bytes]", packed), _PIECE_BYTES)
    return {"mediaType": _LAYER, **_place(path, blobs, between)}, counted.digest


def told_plainly(error: OSError, path: Path) -> HostLacksError:
    """What the kernel says while ``path`` is written, with the next step."""
    if error.errno in fs.FULL:
        return HostLacksError(
            f"no space to export an image to {path.parent}",
            detail=str(error),
            hint=f"free some, or export elsewhere; see: df -h {path.parent}",
        )
    return HostLacksError(f"{path} cannot be written", detail=str(error), hint=f"ls -ld {path.parent}")  # fmt: skip
