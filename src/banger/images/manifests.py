"""Manifests on disk: read, brought up to date, or refused with the command that mends them."""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path

import msgspec

from banger.api.malformed import NOT_JSON
from banger.images.seal import MANIFEST, put_manifest
from banger.model import clock
from banger.model.manifest import (
    MANIFEST_VERSION,
    OLDEST_VERSION,
    UPGRADED,
    HistoryEntry,
    ImageManifest,
    Unusable,
)


class _Head(msgspec.Struct):
    """What every manifest has, of whatever version."""

    name: str = ""
    recipe: str = ""
    version: int = 0


def read(path: Path) -> ImageManifest | Unusable:
    """The manifest in the file ``path``, in the directory called by the image's id; OSError if it cannot be read."""
    data, image_id = path.read_bytes(), path.parent.name
    try:
        head = msgspec.json.decode(data, type=_Head)
        if head.version > MANIFEST_VERSION:
            why = f"its manifest is of version {head.version}, this banger knows {MANIFEST_VERSION}"
            return Unusable(image_id, head.name, why, "update banger, or build the image again")
        if head.version < OLDEST_VERSION:
            why = f"its manifest is of version {head.version}, too old for this banger"
            return Unusable(image_id, head.name, why, _build(head))
        return msgspec.json.decode(data, type=ImageManifest)
    except NOT_JSON as error:
        why = f"its manifest is damaged: {error}"
        return Unusable(image_id, "", why, f"banger image delete {image_id}, and build it again")


def _build(head: _Head) -> str:
    recipe = shlex.quote(head.recipe or head.name or "debian")
    named = f" --name {head.name}" if head.name and head.recipe not in {"", head.name} else ""
    return f"banger image build {recipe}{named} --force"


def upgrade(directory: Path, manifest: ImageManifest) -> bool:
    """Write an older manifest anew in today's form; whether it was one. What it does not say stays unsaid: its payload is of the
    first version, its work seed ready for nothing.
    """
    if manifest.version >= MANIFEST_VERSION:
        return False
    entry = HistoryEntry(clock.now(), f"{UPGRADED} from version {manifest.version}")
    upgraded = replace(manifest, version=MANIFEST_VERSION, history=(*manifest.history, entry))
    put_manifest(directory, upgraded)
    return True


def manifest_of(directory: Path) -> ImageManifest | Unusable:
    """As `read`, of an image's directory."""
    return read(directory / MANIFEST)
