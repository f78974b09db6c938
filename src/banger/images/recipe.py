"""Recipes: what an image is made of, read from ``config/images/*.toml`` or a file of the user's own."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import msgspec

from banger.images.package_list import read_package_list
from banger.images.positions import Path as Keys
from banger.images.recipe_extras import ExtraFile, Hook, absolute_sources, load_files, load_hooks
from banger.images.recipe_keys import ADDED, Recipe
from banger.images.recipe_text import EXTENDS, RecipeText, read_text
from banger.images.resources import config_dir
from banger.images.tools import check_tools
from banger.model.errors import BangerError, InvalidInputError, NotFoundError
from banger.model.ids import check_name
from banger.model.units import GIB, MIB, format_size, parse_size

PACKAGE_NAMES = {  # as they stand in package lists, of every distribution that can be built
    "debian": re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?", re.ASCII),
    "void": re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}", re.ASCII),
}
INITS = {"debian": "systemd", "void": "runit"}  # the only one of each distribution yet
_MIRROR = re.compile(
    r"(deb (\[[A-Za-z0-9 =,.:/_-]+\] )?)?https?://[A-Za-z0-9._~:/?@%+\[\]-]+( [A-Za-z0-9./_ -]+)?"
)
_LEAST_DISK_BYTES, _LEAST_SEED_BYTES, _MOST_BYTES = 2 * GIB, 64 * MIB, 1 << 44
_MOST_EXTENDS = 8


class LoadedRecipe(msgspec.Struct, frozen=True):
    """A recipe with its sizes in bytes and its packages, sorted; its files and hooks are read, or digested if they are large.

    ``origins`` says where each package is asked for (``file:line``), ``ref`` is how the recipe was called, ``lock_sha256`` is that
    of the lock file, where there is one.
    """

    recipe: Recipe
    disk_bytes: int
    work_seed_bytes: int
    packages: list[str]
    mirrors: tuple[str, ...] = ()
    files: list[ExtraFile] = []
    hooks: list[Hook] = []
    origins: dict[str, str] = {}
    ref: str = ""
    lock_sha256: str = ""

    def fingerprint(self) -> dict[str, object]:
        """All that the image depends on, without where it lies on this host."""
        known: dict[str, Any] = msgspec.to_builtins(self)
        for key in ("packages", "files", "hooks", "mirror"):
            del known["recipe"][key]
        del known["origins"], known["ref"]
        for table in (*known["files"], *known["hooks"]):
            for key in ("source", "content", "origin", "text"):
                table.pop(key, None)
        return known


def load_recipe(ref: str) -> LoadedRecipe:
    """The recipe of this name in ``config/images``, or in the file of this path (with a slash or ending in .toml)."""
    text = _open(recipe_path(ref), ref)
    table = _merged(text, (text.path,))
    recipe = text.convert(table)
    _check_words(text, recipe)
    listed = Path(recipe.packages)
    try:
        wanted = read_package_list(listed, recipe.profiles, PACKAGE_NAMES[recipe.distribution])
    except NotFoundError as error:
        told = text.error(("packages",), error.what, detail=error.detail, hint=error.hint)
        raise NotFoundError(told.what, detail=told.detail, hint=told.hint) from error
    origins = dict(wanted.wanted)
    for number, profile in enumerate(recipe.profiles):
        if profile not in wanted.profiles:
            raise _own(text, table, "profiles", number)(
                f"{listed} has no profile {profile!r}",
                hint=f"it has: {', '.join(sorted(wanted.profiles))}",
            )
    for number, package in enumerate(recipe.add_packages):
        if not PACKAGE_NAMES[recipe.distribution].fullmatch(package):
            raise _own(text, table, "add_packages", number)(f"{package!r} is not a package name")
        line = text.positions.find(_own_keys(text, table, "add_packages", number))[0]
        origins.setdefault(package, f"{text.path}:{line}")
    if any(user.sudo for user in recipe.users) and "sudo" not in origins:
        number = next(n for n, user in enumerate(recipe.users) if user.sudo)
        raise _own(text, table, "users", number)(
            "a user is to have sudo, which no package brings", hint='add_packages = ["sudo"]'
        )
    check_tools(recipe.tools, lambda number: _own(text, table, "tools", number))
    return LoadedRecipe(
        recipe,
        _size(text, "disk_size", recipe.disk_size, _LEAST_DISK_BYTES),
        _size(text, "work_seed_size", recipe.work_seed_size, _LEAST_SEED_BYTES),
        sorted(origins),
        _mirrors(text, recipe),
        load_files(recipe.files, lambda number: _own(text, table, "files", number)),
        load_hooks(recipe.hooks, lambda number: _own(text, table, "hooks", number)),
        origins,
        ref,
    )


def recipe_path(ref: str) -> Path:
    """The file of a recipe that is called ``ref``, whether it is there or not; InvalidInputError for what is no name."""
    if "/" in ref or ref.endswith(".toml"):
        return Path(ref)
    return config_dir() / "images" / f"{check_name(ref, what='recipe')}.toml"


def _open(path: Path, ref: str) -> RecipeText:
    try:
        data = path.read_bytes()
    except OSError as error:
        known = sorted(p.stem for p in (config_dir() / "images").glob("*.toml"))
        raise NotFoundError(
            f"no image recipe {ref!r}",
            detail=f"{path}: {error.strerror}",
            hint=f"known recipes: {', '.join(known)}",
        ) from None
    return read_text(data, path)


def _merged(text: RecipeText, chain: tuple[Path, ...]) -> dict[str, Any]:
    """What the text says, over what it extends; its own part is checked, so that mistakes are told where they stand."""
    text.check_keys()
    own = absolute_sources(text)
    base: dict[str, Any] = {}
    ref = own.pop(EXTENDS, None)
    if ref is not None:
        base = _base(text, ref, chain)
    text.convert({**base, **own})
    added = {key: [*base[key], *own[key]] for key in ADDED if key in base and key in own}
    return {**base, **own, **added}


def _base(text: RecipeText, ref: object, chain: tuple[Path, ...]) -> dict[str, Any]:
    if not isinstance(ref, str):
        raise text.error((EXTENDS,), "extends is malformed", detail="Expected `str`")
    near = "/" in ref or ref.endswith(".toml")
    try:
        path = text.path.parent / ref if near else recipe_path(ref)
        below = _open(path, ref)
    except BangerError as error:
        raise text.error((EXTENDS,), error.what, detail=error.detail, hint=error.hint) from error
    if path.resolve() in [one.resolve() for one in chain] or len(chain) >= _MOST_EXTENDS:
        raise text.error((EXTENDS,), f"{ref!r} extends this in turn", hint="end the circle")
    base = _merged(below, (*chain, path))
    del base["name"]
    return base


def _own_keys(text: RecipeText, table: dict[str, Any], key: str, number: int) -> Keys:
    """Where item ``number`` of the merged array ``key`` stands in the text; around it, if the text has it from elsewhere."""
    own = text.table.get(key, [])
    at = number - (len(table[key]) - len(own))
    return (key, at) if at >= 0 else (EXTENDS,)


class _At:
    """Makes errors about one place of a text."""

    def __init__(self, text: RecipeText, keys: Keys) -> None:
        self._text = text
        self._keys = keys

    def __call__(
        self, what: str, *keys: str, detail: str = "", hint: str = ""
    ) -> InvalidInputError:
        """About the place, or the key below it."""
        return self._text.error((*self._keys, *keys), what, detail=detail, hint=hint)


def _own(text: RecipeText, table: dict[str, Any], key: str, number: int) -> _At:
    return _At(text, _own_keys(text, table, key, number))


def _check_words(text: RecipeText, recipe: Recipe) -> None:
    """What can be built, names that must differ, an init that there is."""
    try:
        check_name(recipe.name, what="image")
    except BangerError as error:
        raise text.error(("name",), error.what, detail=error.detail, hint=error.hint) from error
    for key, allowed in (("distribution", tuple(PACKAGE_NAMES)), ("architecture", ("amd64",))):
        if getattr(recipe, key) not in allowed:
            raise text.error(
                (key,),
                f"{key} {getattr(recipe, key)!r} cannot be built yet",
                hint=f"write {key} = {' or '.join(map(repr, allowed))}",
            )
    init = INITS[recipe.distribution]
    if recipe.init not in ("", init):
        raise text.error(
            ("init",), f"{recipe.distribution} has no init {recipe.init!r}", hint=f'write init = "{init}"'
        )  # fmt: skip
    for key, names in (
        ("services", [service.name for service in recipe.services]),
        ("users", [user.name for user in recipe.users]),
        ("files", [file.path for file in recipe.files]),
        ("tools", [tool.name for tool in recipe.tools]),
    ):
        for number, name in enumerate(names):
            if name in names[:number]:
                own = number - (len(names) - len(text.table.get(key, [])))
                raise text.error(
                    (key, own), f"{key}: two are called {name!r}", hint="give each its own name"
                )
    for number, user in enumerate(text.table.get("users", [])):
        if user["name"] == "root":
            raise text.error(("users", number, "name"), "root is there already", hint="choose another name")  # fmt: skip


def _mirrors(text: RecipeText, recipe: Recipe) -> tuple[str, ...]:
    many = isinstance(recipe.mirror, list)
    mirrors = recipe.mirror if isinstance(recipe.mirror, list) else [recipe.mirror]
    for number, mirror in enumerate(mirrors):
        if not _MIRROR.fullmatch(mirror):
            raise text.error(
                ("mirror", number) if many else ("mirror",),
                f"mirror {mirror!r} is not possible",
                hint="write an address (http:// or https://), or a line of sources.list: deb [signed-by=FILE] ADDRESS SUITE COMPONENT",
            )
    return tuple(mirrors)


def _size(text: RecipeText, key: str, said: str, least_bytes: int) -> int:
    """Bytes of a disk: whole MiB, at least ``least_bytes``."""
    try:
        size_bytes = parse_size(said, what=key)
    except InvalidInputError as error:
        raise text.error((key,), error.what, detail=error.detail, hint=error.hint) from error
    if not least_bytes <= size_bytes <= _MOST_BYTES or size_bytes % MIB:
        raise text.error(
            (key,),
            f"{key} {said!r} is not possible",
            hint=f"write whole MiB, at least {format_size(least_bytes)}",
        )
    return size_bytes
