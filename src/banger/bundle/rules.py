"""What a manifest's types cannot say: how its parts must fit together."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from banger.bundle.manifest import FILE_NAME, Manifest

_NOTHING = hashlib.sha256(b"").hexdigest()


def mistakes(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """All that does not fit: key and sentence of each mistake."""
    yield from _wrong_urls(manifest)
    yield from _wrong_files(manifest)
    yield from _wrong_pins(manifest)
    paths = {file.path for file in manifest.files}
    if manifest.firecracker_path not in paths:
        yield "firecracker_path", f"{manifest.firecracker_path!r} is not among the files"
    if manifest.jailer_path is not None and manifest.jailer_path not in paths:
        yield "jailer_path", f"{manifest.jailer_path!r} is not among the files"
    for number, image in enumerate(manifest.images):
        if not any(path.startswith(f"{image.path}/") for path in paths):
            yield f"images[{number}].path", f"no file lies below {image.path!r}"
        if image.name in {other.name for other in manifest.images[:number]}:
            yield f"images[{number}].name", f"{image.name!r} is there twice"


def _wrong_urls(manifest: Manifest) -> Iterator[tuple[str, str]]:
    for number, url in enumerate(manifest.urls):
        key = f"urls[{number}]"
        if not re.fullmatch(r"[!#-\[\]-~]{1,2048}", url):  # printable ASCII but quote and backslash
            yield key, "has characters that no URL has"
            continue
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as error:
            yield key, f"is no URL: {error}"
            continue
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            yield key, "must begin with https:// or http:// and name a host"
        elif "@" in parts.netloc:
            yield key, "must not hold a password"


def _wrong_files(manifest: Manifest) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    sources: set[str] = set()
    directories = {
        str(parent) for file in manifest.files for parent in PurePosixPath(file.path).parents
    }
    for number, file in enumerate(manifest.files):
        key = f"files[{number}]"
        if file.path in seen:
            yield f"{key}.path", f"{file.path!r} is there twice"
        if file.source in sources:
            yield f"{key}.member", f"{file.source!r} is there twice"
        if file.path in directories:
            yield f"{key}.path", f"{file.path!r} is a directory of another file"
        if file.path == FILE_NAME:
            yield f"{key}.path", f"{FILE_NAME!r} is the manifest's own name"
        if file.path in manifest.programs and not file.mode_bits & 0o100:
            yield f"{key}.mode", "a program must be executable, for example 0755"
        seen.add(file.path)
        sources.add(file.source)


def _wrong_pins(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Contents are known of all files or of none, an archive only with contents, URLs only with an archive."""
    pinned = [bool(file.sha256) for file in manifest.files]
    if any(pinned) and not all(pinned):
        yield f"files[{pinned.index(False)}].sha256", "is missing, other files have one"
    for number, file in enumerate(manifest.files):
        if (file.size_bytes == 0) != (file.sha256 in {"", _NOTHING}):
            yield f"files[{number}].size_bytes", "sha256 and size_bytes come together"
    if all(pinned) and not manifest.version:
        yield "version", "is missing, though the files have digests"
    if bool(manifest.sha256) != bool(manifest.size_bytes):
        yield "size_bytes", "sha256 and size_bytes come together"
    if manifest.sha256 and not all(pinned):
        yield "sha256", "is given, but the files have no digests"
    if manifest.urls and not manifest.sha256:
        yield "urls", "are given, but no sha256: nothing could be verified"
    if manifest.other_members == "skip" and not manifest.unpacked_max_bytes:
        yield "unpacked_max_bytes", "is needed where other members are skipped"
