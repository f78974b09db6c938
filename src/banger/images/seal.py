"""The end of making an image: its files are made read-only, written through and digested, its manifest gets an id and is written."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import replace
from pathlib import Path

import msgspec

from banger.host import fs
from banger.model.ids import ID_LENGTH
from banger.model.manifest import FileEntry, ImageManifest

MANIFEST = "manifest.json"
_NO_PART_OF_THE_ID = (
    *("id", "created_at", "inputs_digest", "recipe", "kernel_digest", "pvh"),
    *("payload", "seed", "seed_of", "parent", "history", "version"),
)


def seal_file(path: Path, *, between: fs.Between = fs.go_on) -> FileEntry:
    """Make ``path`` read-only and safe from a power cut; its size and digest."""
    path.chmod(0o444)
    with path.open("rb") as file:
        os.fsync(file.fileno())
    return FileEntry(path.stat().st_size, fs.sparse_digest(path, between=between))


def image_id(manifest: ImageManifest) -> str:
    """12 hex digits of the SHA-256 over what the image is: its name and all that boots.

    When and from what it was made is no part of it, nor what follows from its files. An id is given once: a work seed that is renewed
    later does not change it.
    """
    content = msgspec.to_builtins(manifest)
    known = {key: value for key, value in content.items() if key not in _NO_PART_OF_THE_ID}
    known["services"] = [{k: v for k, v in one.items() if v != ""} for one in known["services"]]
    earlier = {**dict.fromkeys(("id", "created_at", "inputs_digest")), "version": 1}
    return hashlib.sha256(json.dumps({**known, **earlier}, sort_keys=True).encode()).hexdigest()[
        :ID_LENGTH
    ]


def write_manifest(directory: Path, manifest: ImageManifest) -> ImageManifest:
    """Give ``manifest`` its id and write it into ``directory``, which is an image from then on."""
    manifest = replace(manifest, id=image_id(manifest))
    put_manifest(directory, manifest)
    return manifest


def put_manifest(directory: Path, manifest: ImageManifest) -> None:
    """Write ``manifest`` as it is; a reader sees the one before or this one."""
    data = msgspec.json.format(msgspec.json.encode(manifest))
    fs.write_atomic(directory / MANIFEST, data, mode=0o644)
