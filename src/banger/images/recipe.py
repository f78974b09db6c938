"""Recipes: what an image is made of, read from ``config/images/*.toml`` or a file of the user's own."""

from __future__ import annotations

import difflib
import re
import tomllib
from pathlib import Path

import msgspec

from banger.images.resources import config_dir
from banger.model.errors import InvalidInputError, NotFoundError
from banger.model.ids import check_name
from banger.model.manifest import Service
from banger.model.units import parse_size

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?", re.ASCII)


class Recipe(msgspec.Struct, forbid_unknown_fields=True, frozen=True):
    """A recipe file. ``packages`` is a package list beside the recipe's parent folder or an absolute path."""

    name: str
    distribution: str
    release: str
    architecture: str
    packages: str
    profiles: list[str] = []
    disk_size: str = "8G"
    work_seed_size: str = "1G"
    cmdline: str = ""
    kernel_modules: list[str] = []
    services: list[Service] = []


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
    if recipe.distribution != "debian":
        raise InvalidInputError(
            f"{path}: distribution {recipe.distribution!r} cannot be built yet", hint="use debian"
        )
    check_name(recipe.name, what="image")
    listed = Path(recipe.packages)
    packages = _packages(
        listed if listed.is_absolute() else path.parent.parent / listed, recipe.profiles
    )
    return LoadedRecipe(
        recipe,
        parse_size(recipe.disk_size, what=f"{path}: disk_size"),
        parse_size(recipe.work_seed_size, what=f"{path}: work_seed_size"),
        packages,
    )


def _decode(text: bytes, path: Path) -> Recipe:
    try:
        table = tomllib.loads(text.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidInputError(f"{path} is not TOML", detail=str(error)) from error
    known = Recipe.__struct_fields__
    for key in table:
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            raise InvalidInputError(
                f"{path}: unknown key {key!r}",
                hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}",
            )
    try:
        return msgspec.convert(table, type=Recipe)
    except msgspec.ValidationError as error:
        raise InvalidInputError(f"{path} is malformed", detail=str(error)) from error


def _packages(path: Path, profiles: list[str]) -> list[str]:
    try:
        lines = path.read_text().splitlines()
    except OSError as error:
        raise NotFoundError(
            f"package list {path} cannot be read", detail=str(error.strerror)
        ) from None
    wanted: set[str] = set()
    seen: set[str] = set()
    section = ""
    for number, line in enumerate(lines, 1):
        word = line.partition("#")[0].strip()
        if word.startswith("[") and word.endswith("]"):
            section = word[1:-1]
            seen.add(section)
        elif word and not _PACKAGE.fullmatch(word):
            raise InvalidInputError(f"{path}:{number}: {word!r} is not a package name")
        elif word and (not section or section in profiles):
            wanted.add(word)
    missing = set(profiles) - seen
    if missing:
        raise InvalidInputError(
            f"{path} has no profile {min(missing)!r}",
            hint=f"it has: {', '.join(sorted(seen))}",
        )
    return sorted(wanted)
