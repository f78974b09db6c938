"""A recipe's text with the places of everything in it, so that a mistake is told as ``file:line:column``."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from banger.images.positions import Path as Keys
from banger.images.positions import Positions
from banger.images.recipe_keys import TABLES, Recipe
from banger.model.errors import InvalidInputError

EXTENDS = "extends"
_SYNTAX = re.compile(r"(.*) \(at (?:line (\d+), column (\d+)|end of document)\)", re.DOTALL)
_INVALID = re.compile(r"(.*) - at `\$(?:\.(.*))?`", re.DOTALL)
_STEP = re.compile(r"([^.\[\]]+)|\[(\d+)\]")
_SHOWN_CHARS = 100


@dataclass(frozen=True, slots=True)
class RecipeText:
    """The file ``path`` as it is written: ``table`` is what it says."""

    path: Path
    table: dict[str, Any]
    positions: Positions

    def error(
        self, keys: Keys, what: str, *, detail: str = "", hint: str = "", key: bool = False
    ) -> InvalidInputError:
        """An error about the value at ``keys``, or about its ``key``."""
        line, column = self.positions.find(keys, key=key)
        return _error((self.path, self.positions.text), (line, column), what, detail, hint)

    def check_keys(self) -> None:
        """InvalidInputError for the first key that no recipe has, with the nearest one that it has."""
        self._check((), self.table, (*Recipe.__struct_fields__, EXTENDS))
        for name, kind in TABLES.items():
            found = self.table.get(name)
            for number, table in enumerate(found if isinstance(found, list) else []):
                if isinstance(table, dict):
                    self._check((name, number), table, kind.__struct_fields__)

    def _check(self, around: Keys, table: Mapping[str, object], known: tuple[str, ...]) -> None:
        for name in table:
            if name not in known:
                near = difflib.get_close_matches(name, known, 1)
                raise self.error(
                    (*around, name),
                    f"unknown key {dotted((*around, name))!r}",
                    hint=f"did you mean {near[0]!r}?" if near else f"known: {', '.join(known)}",
                    key=True,
                )

    def convert(self, table: Mapping[str, object]) -> Recipe:
        """The recipe that ``table`` is: this text's, perhaps with what it extends. InvalidInputError."""
        try:
            return msgspec.convert(table, type=Recipe)
        except msgspec.ValidationError as error:
            match = _INVALID.fullmatch(str(error))
            what, at = (match[1], match[2] or "") if match else (str(error), "")
            keys = tuple(
                int(step[2]) if step[2] is not None else step[1] for step in _STEP.finditer(at)
            )
            lacks = re.fullmatch(r"Object missing required field `(.*)`", what)
            if lacks:
                where = dotted(keys) or "the recipe"
                raise self.error(
                    keys, f"{where} has no {lacks[1]!r}", hint=f"write {lacks[1]} = …"
                ) from error
            raise self.error(
                keys, f"{dotted(keys)} is malformed", detail=what, hint=f"mend {self.path}; compare with a recipe of banger's own"
            ) from error  # fmt: skip


def read_text(data: bytes, path: Path) -> RecipeText:
    """Parse; InvalidInputError for what is not TOML."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        column = error.start - data.rfind(b"\n", 0, error.start)
        raise InvalidInputError(
            f"{path}:{line}:{column}: not UTF-8",
            detail=str(error),
            hint=f"iconv -t UTF-8 {path}",
        ) from error
    text = text.replace("\r\n", "\n")
    try:
        table = tomllib.loads(text)
    except RecursionError as error:
        raise _error((path, text), (1, 1), "not TOML: nested too deeply", "", f"mend {path}") from error  # fmt: skip
    except tomllib.TOMLDecodeError as error:
        match = _SYNTAX.fullmatch(str(error))
        what = match[1] if match else str(error)
        if match and match[2]:
            line, column = int(match[2]), int(match[3])
        else:
            line = text.count("\n") + 1
            column = len(text) - text.rfind("\n")
        raise _error(
            (path, text), (line, column), f"not TOML: {what}", "", f"mend {path}"
        ) from error
    return RecipeText(path, table, Positions(text))


def dotted(keys: Keys) -> str:
    """Keys as people write them: ``services[0].port``."""
    said = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in keys)
    return said.removeprefix(".")


def _error(
    place: tuple[Path, str], at: tuple[int, int], what: str, detail: str, hint: str
) -> InvalidInputError:
    (path, text), (line, column) = place, at
    lines = text.split("\n")
    shown = lines[line - 1] if line <= len(lines) else ""
    cut = max(0, column - _SHOWN_CHARS)
    source = shown[cut : cut + _SHOWN_CHARS + 20].replace("\t", " ")
    quoted = f"{line:4} | {source}\n     | {' ' * (column - 1 - cut)}^"
    return InvalidInputError(
        f"{path}:{line}:{column}: {what}",
        detail="\n".join(filter(None, [detail, quoted if shown.strip() else ""])),
        hint=hint or f"mend {path}",
    )
