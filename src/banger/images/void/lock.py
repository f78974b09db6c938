"""The lock file of a Void image: the digest of every byte that is taken from a mirror, and the key that signed the packages.

It names no mirror: files are named relative to whatever mirror is configured. ``banger image lock`` writes it to ``images/.void/<recipe>.lock``;
the files that it names are kept beside it, in ``images/.void/files``, by their digest.
"""

from __future__ import annotations

import base64
import hashlib
import shlex
from pathlib import Path
from typing import Annotated, Literal

import msgspec

from banger.api.malformed import NOT_JSON
from banger.host import fs
from banger.images.recipe import LoadedRecipe
from banger.images.void.signature import SigningKey
from banger.model.errors import InvalidInputError, NotFoundError

PLACE = ".void"
MAX_LOCK_BYTES = 32 << 20
ARCHITECTURES = {"amd64": "x86_64"}
"""Names of architectures: a recipe's, and XBPS's."""

_Sha256 = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}$")]
_Size = Annotated[int, msgspec.Meta(ge=1, le=1 << 33)]
_Path = Annotated[
    str, msgspec.Meta(pattern=r"^([A-Za-z0-9_+][A-Za-z0-9_.+~:-]*/)*[A-Za-z0-9_+][A-Za-z0-9_.+~:-]*$", max_length=300)
]  # fmt: skip


class LockedFile(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A file of a mirror: ``path`` is relative to the mirror's address, ``sha256`` in hex."""

    path: _Path
    size_bytes: _Size
    sha256: _Sha256

    @property
    def name(self) -> str:
        """The last part of its path."""
        return self.path.rpartition("/")[2]


class LockedPackage(LockedFile, forbid_unknown_fields=True, frozen=True):
    """A package file; ``signature`` is the content of its ``.sig2`` in base64."""

    pkgver: str
    signature: str


class Lock(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A lock file. ``wanted`` is the recipe's package list, ``packages`` all that it needs, ``key`` the signing key in PEM.

    ``tools`` is the tarball of xbps-static, ``index`` the repository's, ``release`` and ``architecture`` the recipe's.
    """

    version: Literal[1]
    release: str
    architecture: str
    wanted: list[str]
    key: str
    tools: LockedFile
    index: LockedFile
    packages: list[LockedPackage]

    @property
    def files(self) -> list[LockedFile]:
        """All that comes from a mirror."""
        return [self.tools, self.index, *self.packages]


def lock_path(images_dir: Path, loaded: LoadedRecipe) -> Path:
    """Where the lock of this recipe is."""
    return images_dir / PLACE / f"{loaded.recipe.name}.lock"


def read_lock(path: Path, loaded: LoadedRecipe, ref: str) -> tuple[Lock, str]:
    """The lock in ``path`` and its SHA-256; NotFoundError, or InvalidInputError if it is damaged or for another package list.

    ``ref`` is how the recipe was called.
    """
    command = f"banger image lock {shlex.quote(ref)}"
    try:
        data = path.read_bytes()[: MAX_LOCK_BYTES + 1]
    except FileNotFoundError:
        raise NotFoundError(
            f"recipe {loaded.recipe.name} has no lock file",
            detail=f"{path}: a Void image is built from packages whose digests are locked",
            hint=command,
        ) from None
    try:
        lock = msgspec.json.decode(data, type=Lock)
    except NOT_JSON as error:
        raise InvalidInputError(f"lock file {path} is damaged", detail=str(error), hint=command) from error  # fmt: skip
    recipe = loaded.recipe
    theirs = (lock.release, lock.architecture, sorted(lock.wanted))
    if theirs != (recipe.release, recipe.architecture, sorted(loaded.packages)):
        gone, new = set(lock.wanted) - set(loaded.packages), set(loaded.packages) - set(lock.wanted)
        words = [*(f"no more: {name}" for name in sorted(gone)), *(f"new: {name}" for name in sorted(new))]  # fmt: skip
        raise InvalidInputError(
            f"lock file {path} is not for this package list",
            detail=", ".join(words)[:500],
            hint=command,
        )
    _check_key(lock, recipe.signing_keys, path, command)
    return lock, hashlib.sha256(data).hexdigest()


def _check_key(lock: Lock, pinned: list[str], path: Path, command: str) -> None:
    key = SigningKey.parse(lock.key.encode(), f"the key in {path}")
    if key.fingerprint not in pinned:
        raise InvalidInputError(
            f"lock file {path} trusts a key that the recipe does not pin",
            detail=f"{key.xbps_name}, SHA-256 {key.fingerprint}",
            hint=command,
        )


def check_signatures(lock: Lock) -> None:
    """InvalidInputError naming the packages whose signature is not the locked key's over the locked digest."""
    key = SigningKey.parse(lock.key.encode(), "the key in the lock file")
    wrong = [
        package.pkgver
        for package in lock.packages
        if not key.signed(package.sha256, _decoded(package.signature))
    ]
    if wrong:
        raise InvalidInputError(
            f"{len(wrong)} packages in the lock file are not signed by its key",
            detail=", ".join(wrong)[:500],
            hint="banger image lock void",
        )


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        return b""


def write_lock(path: Path, lock: Lock) -> None:
    """Write ``lock``, whole or not at all, and readable by people."""
    fs.make_private_dir(path.parent)
    fs.write_atomic(path, msgspec.json.format(msgspec.json.encode(lock)) + b"\n", mode=0o644)
