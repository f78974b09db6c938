"""Which manifest counts, and which command mends a bundle that is missing or damaged."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import msgspec

from banger.bundle import check, places, reading
from banger.bundle.check import BundleState
from banger.bundle.manifest import Manifest
from banger.bundle.places import Root
from banger.bundle.reading import Warn
from banger.host.config import Config
from banger.model.errors import BangerError

FROM_A_COPY = "banger runtime fetch --from FILE --manifest FILE"


def manifest_to_fetch(config: Config, root: Root, given: Path | None, warn: Warn) -> Manifest:
    """The manifest that ``given`` or the configuration names; else banger's own, unless it pins nothing and a bundle was placed from
    another one, whose copy then counts.
    """
    named = given or config.bundle_manifest
    if named is not None:
        return reading.load(named, warn)
    own = reading.load(places.shipped_manifest(), warn)
    if own.pins_contents:
        return own
    version = root.target(root.current)
    if version is not None and places.manifest_of(version).exists():
        return reading.load(places.manifest_of(version), warn)
    return own


def with_urls(manifest: Manifest, urls: Sequence[str]) -> Manifest:
    """The manifest with more URLs before its own; InvalidInputError if one cannot be."""
    if not urls:
        return manifest
    more = msgspec.structs.replace(manifest, urls=(*urls, *manifest.urls))
    return reading.checked(more, "--url")


def how_to_get(config: Config, root: Root) -> str:
    """The command that brings a bundle here."""
    try:
        manifest = manifest_to_fetch(config, root, None, lambda _: None)
    except BangerError:
        return FROM_A_COPY
    if not manifest.pins_contents:
        return FROM_A_COPY
    return "banger runtime fetch" if manifest.urls else "banger runtime fetch --from FILE"


def how_to_mend(config: Config, root: Root, state: BundleState) -> str:
    """The command that makes the bundle in ``root``, which is in ``state``, whole again."""
    if state.only("owner"):
        return f"sudo chown -R $(id -u) {root.path} && sudo chmod -R go-w {root.path}"
    if state.only("mode") and state.version_dir is not None:
        version = state.version_dir
        return f"banger runtime fetch --from {version} --manifest {places.manifest_of(version)}"
    command = how_to_get(config, root)
    if "--from" in command and check.look(root, root.previous).state == "ok":
        return "banger runtime rollback"
    return command
