"""Documents that somebody else may have written: manifests, recipes, lock files, the index of a repository."""

from __future__ import annotations

import gzip
import io
import tarfile
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

from banger.bundle import reading
from banger.bundle.manifest import to_toml
from banger.images import manifests
from banger.images.recipe import LoadedRecipe, load_recipe
from banger.images.void import index as void
from banger.images.void import lock as locks
from banger.model.errors import BangerError
from banger.model.manifest import ImageManifest
from fuzz.targets.peers import require


def image_manifest(data: bytes) -> None:
    """A manifest of an image: read, or unusable with a reason."""
    with tempfile.TemporaryDirectory(prefix="banger-fuzz-") as name:
        path = Path(name) / "manifest.json"
        path.write_bytes(data)
        found = manifests.read(path)
        require(isinstance(found, ImageManifest) or bool(found.why and found.hint), "no reason")


def bundle_manifest(data: bytes) -> None:
    """A manifest of a runtime bundle: what is read back from what is written is equal; or InvalidInputError."""
    with suppress(BangerError):
        found = reading.parse(data, "manifest.toml", lambda _warning: None)
        again = reading.parse(to_toml(found).encode(), "again", lambda _warning: None)
        require(again == found, "it is not read back as it was written")


def recipe(data: bytes) -> None:
    """A recipe is loaded, or refused with the place of the mistake."""
    with tempfile.TemporaryDirectory(prefix="banger-fuzz-") as name:
        path = Path(name) / "recipe.toml"
        path.write_bytes(data)
        try:
            load_recipe(str(path)).fingerprint()
        except BangerError as error:
            require(bool(error.what and error.hint), f"no what or hint: {error!r}")


@cache
def _void() -> LoadedRecipe:
    return load_recipe("void")


def void_lock(data: bytes) -> None:
    """A lock file is this recipe's, or refused."""
    with tempfile.TemporaryDirectory(prefix="banger-fuzz-") as name:
        path = Path(name) / "void.lock"
        path.write_bytes(data)
        with suppress(BangerError):
            lock, _ = locks.read_lock(path, _void(), "void")
            locks.check_signatures(lock)


def void_index(data: bytes) -> None:
    """The index of a repository: packed as it comes, then its property list alone."""
    for packed in (gzip.compress(data, 0), gzip.compress(_index(data), 0)):
        with suppress(BangerError):
            found = void.parse_index(packed)
            for name in list(found.packages)[:20]:
                with suppress(BangerError):
                    require(found.entry(name, "x86_64").size_bytes > 0, "a package of no size")


def _index(plist: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in (("index.plist", plist), ("index-meta.plist", b"")):
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()
