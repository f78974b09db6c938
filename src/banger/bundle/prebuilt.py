"""The prebuilt images of the bundle in use: where they lie. What is in them is looked at by who takes them in."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from banger.bundle import reading
from banger.bundle.manifest import Manifest
from banger.bundle.places import Root, manifest_of
from banger.bundle.reading import Warn
from banger.model.errors import BangerError

IMAGE_MANIFEST = "manifest.json"


@dataclass(frozen=True, slots=True)
class Prebuilt:
    """An image of a bundle: its name, and the directory of its files."""

    name: str
    directory: Path


def prebuilt(root: Root, warn: Warn) -> list[Prebuilt]:
    """The images whose own manifest is the one that the bundle's states; ``warn`` gets a sentence about each other one.

    That manifest states the digests of the other files, so that nothing else need be read here.
    """
    version = root.target(root.current)
    if version is None or not version.is_dir():
        return []
    try:
        manifest = reading.load(manifest_of(version), warn)
    except BangerError as error:
        warn(f"images of the bundle are not looked at: {error.what}")
        return []
    found = []
    for image in manifest.images:
        why = _trouble(version, f"{image.path}/{IMAGE_MANIFEST}", manifest)
        if why:
            warn(f"image {image.name} of the bundle is left alone: {why}")
        else:
            found.append(Prebuilt(image.name, version / image.path))
    return found


def _trouble(version: Path, path: str, manifest: Manifest) -> str:
    """Why the image whose manifest is ``path`` cannot be taken in; "" if it can."""
    stated = {file.path: file.sha256 for file in manifest.files}
    if not stated.get(path):
        return f"the bundle's manifest states no digest of {path}"
    try:
        data = (version / path).read_bytes()
    except OSError as error:
        return f"{path}: {error.strerror}"
    return "" if hashlib.sha256(data).hexdigest() == stated[path] else f"{path} was changed"
