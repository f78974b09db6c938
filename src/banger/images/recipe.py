"""Recipes: what an image is made of, read from ``config/images/*.toml`` or a file of the user's own."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated

import msgspec

from banger.images.resources import config_dir
from banger.model.errors import InvalidInputError, NotFoundError
from banger.model.ids import check_name
from banger.model.manifest import CMDLINE_PATTERN, MAX_CMDLINE_CHARS, SERVICE_PATTERN
from banger.model.units import GIB, MIB, format_size, parse_size

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?", re.ASCII)
_PROFILE = re.compile(r"[a-z0-9][a-z0-9-]*", re.ASCII)
_LEAST_DISK_BYTES, _LEAST_SEED_BYTES, _MOST_BYTES = 2 * GIB, 64 * MIB, 1 << 44

_Word = Annotated[str, msgspec.Meta(pattern=f"^{SERVICE_PATTERN}$")]
_ModuleName = Annotated[str, msgspec.Meta(pattern=r"^[a-z0-9][a-z0-9_-]{0,62}$")]
_Cmdline = Annotated[
    str, msgspec.Meta(pattern=f"^{CMDLINE_PATTERN}$", max_length=MAX_CMDLINE_CHARS)
]
_Port = Annotated[int, msgspec.Meta(ge=1, le=65535)]


class ServiceTable(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A ``[[services]]`` table: a TCP service of the guest that must answer before a VM counts as ready."""

    name: _Word
    port: _Port


class Recipe(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A recipe file. ``packages`` is a package list beside the recipe's parent folder or an absolute path."""

    name: str
    distribution: _Word
    release: _Word
    architecture: _Word
    packages: str
    profiles: list[_Word] = []
    disk_size: str = "8G"
    work_seed_size: str = "1G"
    cmdline: _Cmdline = ""
    kernel_modules: list[_ModuleName] = []
    services: list[ServiceTable] = []


class LoadedRecipe(msgspec.Struct, frozen=True):
    """A recipe with its sizes in bytes and its packages, sorted."""

    recipe: Recipe
    disk_bytes: int
    work_seed_bytes: int
    packages: list[str]


def load_recipe(ref: str) -> LoadedRecipe:
    """The recipe of this name in ``config/images``, or in the file of this path (with a slash or ending in .toml)."""
    if "/" in ref or ref.endswith(".toml"):
        path = Path(ref)
    else:
        path = config_dir() / "images" / f"{check_name(ref, what='recipe')}.toml"
    try:
        text = path.read_bytes()
    except OSError as error:
        known = sorted(p.stem for p in (config_dir() / "images").glob("*.toml"))
        raise NotFoundError(
            f"no image recipe {ref!r}",
            detail=f"{path}: {error.strerror}",
            hint=f"known recipes: {', '.join(known)}",
        ) from None
    recipe = _decode(text, path)
    check_name(recipe.name, what="image")
    for key, allowed in (("distribution", "debian"), ("architecture", "amd64")):
        if getattr(recipe, key) != allowed:
            raise InvalidInputError(
                f"{path}: {key} {getattr(recipe, key)!r} cannot be built yet",
                hint=f"write {key} = {allowed!r}",
            )
    names = [service.name for service in recipe.services]
    if len(set(names)) < len(names):
        raise InvalidInputError(
            f"{path}: services: two have the same name", hint="give each its own"
        )
    listed = Path(recipe.packages)
    packages = _packages(
        listed if listed.is_absolute() else path.parent.parent / listed, recipe.profiles
    )
    return LoadedRecipe(
        recipe,
        _size(path, "disk_size", recipe.disk_size, _LEAST_DISK_BYTES),
        _size(path, "work_seed_size", recipe.work_seed_size, _LEAST_SEED_BYTES),
        packages,
    )


def _size(path: Path, key: str, text: str, least_bytes: int) -> int:
    """Bytes of a disk: whole MiB, at least ``least_bytes``."""
    size_bytes = parse_size(text, what=f"{path}: {key}")
    if not least_bytes <= size_bytes <= _MOST_BYTES or size_bytes % MIB:
        raise InvalidInputError(
            f"{path}: {key} {text!r} is not possible",
            hint=f"write whole MiB, at least {format_size(least_bytes)}",
        )
    return size_bytes


def _decode(text: bytes, path: Path) -> Recipe:
    try:
        table = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(
            f"{path} is not TOML", detail=str(error), hint=f"mend line and column in {path}"
        ) from error
    _check_keys(path, "", table, Recipe.__struct_fields__)
    services = table.get("services")
    for number, service in enumerate(services if isinstance(services, list) else []):
        if isinstance(service, dict):
            _check_keys(path, f"services[{number}].", service, ServiceTable.__struct_fields__)
    try:
        return msgspec.convert(table, type=Recipe)
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at `$.")
        where = f": {key.rstrip('`')}" if key else ""
        raise InvalidInputError(
            f"{path}{where} is malformed",
            detail=what,
            hint=f"mend {path}; compare with a recipe of banger's own",
        ) from error


def _check_keys(
    path: Path, prefix: str, table: Mapping[str, object], known: tuple[str, ...]
) -> None:
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise InvalidInputError(
                f"{path}: unknown key {prefix + key!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}",
            )


def _packages(path: Path, profiles: list[str]) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise NotFoundError(
            f"package list {path} cannot be read", detail=str(error.strerror), hint=f"ls -l {path}"
        ) from None
    wanted: set[str] = set()
    seen: set[str] = set()
    section = ""
    for number, line in enumerate(lines, 1):
        word = line.partition("#")[0].strip()
        if word.startswith("[") and word.endswith("]"):
            section = word[1:-1]
            if not _PROFILE.fullmatch(section):
                raise InvalidInputError(
                    f"{path}:{number}: {word!r} is not a profile", hint=f"mend {path}"
                )
            seen.add(section)
        elif word and not _PACKAGE.fullmatch(word):
            raise InvalidInputError(
                f"{path}:{number}: {word!r} is not a package name", hint=f"mend {path}"
            )
        elif word and (not section or section in profiles):
            wanted.add(word)
    missing = set(profiles) - seen
    if missing:
        raise InvalidInputError(
            f"{path} has no profile {min(missing)!r}",
            hint=f"it has: {', '.join(sorted(seen)) or 'none'}",
        )
    if not wanted:
        raise InvalidInputError(f"{path} names no package", hint="write one package a line")
    return sorted(wanted)
