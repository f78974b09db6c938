"""``banger image lock``: ask a mirror once, and write down what it said so that nothing else can be installed later.

Which packages are needed is xbps's own answer: ``xbps-install -n`` on the index, in the sandbox of a build. Each package's signature is over its SHA-256,
so that the unsigned index is confirmed by a signature a package before any of them is downloaded.
"""

from __future__ import annotations

import base64
import difflib
from collections.abc import Callable
from pathlib import Path

import msgspec

from banger.api.malformed import NOT_JSON
from banger.host import fs
from banger.host.download import get
from banger.host.exec import Completed, run_sync
from banger.host.locks import FileLock
from banger.images.recipe import LoadedRecipe, load_recipe
from banger.images.void.index import MAX_INDEX_BYTES, PKGVER, Entry, Index, parse_index
from banger.images.void.lock import (
    ARCHITECTURES,
    PLACE,
    Lock,
    LockedFile,
    LockedPackage,
    lock_path,
    read_lock,
    write_lock,
)
from banger.images.void.signature import MAX_SIGNATURE_BYTES, SigningKey
from banger.images.void.store import Store, mirror_url
from banger.images.void.tools import Workplace
from banger.model.errors import HostLacksError, InvalidInputError, RefusedError

TOOLS = "static/xbps-static-latest.x86_64-musl.tar.xz"
_MAX_TOOLS_BYTES = 64 << 20
_DRY_RUN_S = 300.0
Say = Callable[[str, str], None]
"""Is told a stage and its detail."""


def make_lock(
    ref: str, images_dir: Path, mirror: str | None, say: Say, *, tools: str = TOOLS
) -> tuple[Path, Lock]:
    """Write the lock of the recipe ``ref`` from what the mirror has now, and keep index and tools; the lock and its path.

    ``tools`` is the path of xbps-static's tarball at the mirror. InvalidInputError, HostLacksError; on any the lock that was there stays.
    """
    loaded = load_recipe(ref)
    if loaded.recipe.distribution != "void":
        raise InvalidInputError(
            f"recipe {ref} is {loaded.recipe.distribution}'s, which has no lock file",
            hint=f"banger image build {ref}",
        )
    url = mirror_url(next(iter(loaded.mirrors), None) or mirror)
    fs.make_private_dir(images_dir)
    fs.make_private_dir(images_dir / PLACE)
    guard = FileLock(images_dir / ".lock")
    if not guard.acquire():
        raise RefusedError("an image is being built", hint="banger op list")
    try:
        fs.sweep_temporaries(images_dir / PLACE, older_s=0)
        with fs.temporary_directory(images_dir / PLACE) as scratch:
            lock = _make(loaded, url, Store(images_dir), scratch, say, tools)
        path = lock_path(images_dir, loaded)
        write_lock(path, lock)
        read_lock(path, loaded, ref)
        Store(images_dir).prune(file for lock in _locks(images_dir) for file in lock.files)
    finally:
        guard.release()
    return path, lock


def _make(
    loaded: LoadedRecipe, url: str, store: Store, scratch: Path, say: Say, tools_path: str
) -> Lock:
    recipe = loaded.recipe
    architecture = ARCHITECTURES[recipe.architecture]
    say("tools", tools_path)
    tools = _take(url, tools_path, _MAX_TOOLS_BYTES, store)
    index_path = f"{recipe.release}/{architecture}-repodata"
    say("index", index_path)
    index_file = _take(url, index_path, MAX_INDEX_BYTES, store)
    data = store.path(index_file).read_bytes()
    index = parse_index(data)
    key = _trusted_key(index, recipe.signing_keys)
    _check_names(loaded, index)
    say("resolve", f"{len(loaded.packages)} packages, {len(index.packages)} in the index")
    place = Workplace(scratch / "void", architecture)
    place.path.mkdir()
    place.prepare(data, store.path(tools))
    names = _resolve(place, loaded.packages)
    packages = []
    for number, name in enumerate(names, 1):
        say("signatures", f"{number} of {len(names)}")
        packages.append(_signed(url, recipe.release, index.entry(name, architecture), key))
    return Lock(
        version=1, release=recipe.release, architecture=recipe.architecture, wanted=loaded.packages,
        key=key.pem, tools=tools, index=index_file, packages=packages,
    )  # fmt: skip


def _take(url: str, path: str, limit_bytes: int, store: Store) -> LockedFile:
    data = get(f"{url}/{path}", limit_bytes, what=path)
    if not data:
        raise HostLacksError(
            f"the mirror has no {path}", detail=f"{url}/{path}", hint=f"curl -I {url}/{path}"
        )
    return LockedFile(path, len(data), store.put(data))


def _trusted_key(index: Index, pinned: list[str]) -> SigningKey:
    if not index.key:
        raise InvalidInputError("the mirror's repository is not signed", hint="take another mirror: banger config show")  # fmt: skip
    key = SigningKey.parse(index.key, "the key in the mirror's index")
    if key.fingerprint not in pinned:
        raise InvalidInputError(
            "the mirror's repository is signed with a key that the recipe does not pin",
            detail=f"{key.xbps_name}, SHA-256 {key.fingerprint}",
            hint="take another mirror; a key of your own goes into signing_keys of a recipe of your own",
        )
    return key


def _check_names(loaded: LoadedRecipe, index: Index) -> None:
    unknown = [name for name in loaded.packages if name not in index.packages]
    if unknown:
        near = difflib.get_close_matches(unknown[0], index.packages, 1)
        where = [f"{loaded.origins.get(name, '')}: {name}" for name in unknown]
        raise InvalidInputError(
            f"the repository has no package {unknown[0]!r}",
            detail="\n".join(where)[:1000],
            hint=f"did you mean {near[0]!r}?" if near else "take it out of the package list",
        )


def _resolve(place: Workplace, wanted: list[str]) -> list[str]:
    """The names of all packages that would be installed, sorted."""
    command = place.install(wanted, dry_run=True)
    done = run_sync(command.argv, timeout_s=_DRY_RUN_S, env=command.env, check=False)
    rows = [line.split() for line in done.stdout.decode(errors="replace").splitlines()]
    planned = [PKGVER.fullmatch(row[0]) for row in rows if row[1:2] == ["install"]]
    names = sorted(match[1] for match in planned if match)
    if done.returncode != 0 or len(names) < len(wanted) or None in planned:
        raise HostLacksError("xbps-install cannot resolve the package list", detail=_said(done), hint="mend the package list, then: banger image lock void")  # fmt: skip
    return names


def _said(done: Completed) -> str:
    return (done.stdout + done.stderr)[-2000:].decode(errors="replace").strip()


def _signed(url: str, release: str, entry: Entry, key: SigningKey) -> LockedPackage:
    path = f"{release}/{entry.file_name}"
    signature = get(f"{url}/{path}.sig2", MAX_SIGNATURE_BYTES, what=f"the signature of {entry.pkgver}")  # fmt: skip
    if signature is None:
        raise InvalidInputError(f"package {entry.pkgver} has no signature", detail=f"{url}/{path}.sig2", hint="take another mirror: banger config show")  # fmt: skip
    if not key.signed(entry.sha256, signature):
        raise InvalidInputError(
            f"package {entry.pkgver} is not signed by the repository's key",
            detail=f"the index says its SHA-256 is {entry.sha256}",
            hint="do it again; if it stays so, take another mirror",
        )
    return LockedPackage(path, entry.size_bytes, entry.sha256, entry.pkgver, base64.b64encode(signature).decode())  # fmt: skip


def _locks(images_dir: Path) -> list[Lock]:
    """All lock files that can be read; one that cannot keeps no files."""
    found = []
    for path in (images_dir / PLACE).glob("*.lock"):
        try:
            found.append(msgspec.json.decode(path.read_bytes(), type=Lock))
        except (OSError, *NOT_JSON):
            continue
    return found
