"""Package lists: one package a line, ``#`` begins a comment, a section in brackets is a profile."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from banger.model.errors import InvalidInputError, NotFoundError

_PROFILE = re.compile(r"[a-z0-9][a-z0-9-]*", re.ASCII)
BASE = "base"  # the profile that is always there: what stands before the first section, or in one of this name


@dataclass(frozen=True, slots=True)
class PackageList:
    """``wanted`` maps packages to where they stand (``file:line``), ``profiles`` are those that the list has."""

    wanted: dict[str, str]
    profiles: frozenset[str]


def read_package_list(path: Path, profiles: list[str], names: re.Pattern[str]) -> PackageList:
    """The packages of the base and of ``profiles``; each name must match ``names``. NotFoundError, InvalidInputError."""
    try:
        lines = path.read_text().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise NotFoundError(
            f"package list {path} cannot be read",
            detail=str(getattr(error, "strerror", error)),
            hint=f"ls -l {path}",
        ) from None
    wanted: dict[str, str] = {}
    seen = {BASE}
    section = BASE
    for number, line in enumerate(lines, 1):
        word = line.partition("#")[0].strip()
        column = line.find(word) + 1
        if word.startswith("[") and word.endswith("]"):
            section = word[1:-1]
            if not _PROFILE.fullmatch(section):
                raise InvalidInputError(
                    f"{path}:{number}:{column}: {word!r} is not a profile", hint=f"mend {path}"
                )
            seen.add(section)
        elif word and not names.fullmatch(word):
            raise InvalidInputError(
                f"{path}:{number}:{column}: {word!r} is not a package name", hint=f"mend {path}"
            )
        elif word and section in (BASE, *profiles):
            wanted.setdefault(word, f"{path}:{number}")
    if not wanted:
        raise InvalidInputError(f"{path} names no package", hint="write one package a line")
    return PackageList(wanted, frozenset(seen))
