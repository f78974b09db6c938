"""Read a manifest strictly: an error names file, line and key, and the nearest key that exists; keys of older releases still work."""

from __future__ import annotations

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn

import msgspec

from banger.bundle.manifest import FileTable, ImageTable, Manifest
from banger.bundle.rules import mistakes
from banger.model.errors import HostLacksError, InvalidInputError

MAX_TEXT_BYTES = 1 << 20
Warn = Callable[[str], None]

_RENAMED: Mapping[str, Mapping[str, str]] = {
    "": {
        "url": "urls",
        "checksum": "sha256",
        "size": "size_bytes",
        "firecracker_bin": "firecracker_path",
        "jailer_bin": "jailer_path",
        "file": "files",
        "image": "images",
    },
    "files": {"name": "path", "checksum": "sha256", "size": "size_bytes"},
    "images": {"dir": "path"},
}
"""Keys of older releases, by table, and what they are called now."""

_DROPPED = {
    "ping_helper_path": "the guest agent is part of banger now",
    "agent_path": "the guest agent is part of banger now",
}
"""Keys of older releases that nothing needs any more."""

_A_PATH = "a relative path of letters, digits and . _ + - with at most 8 parts"
_WORDS = {
    "name": "1 to 63 lower-case letters, digits and dashes",
    "version": "at most 63 letters, digits and . + _ -",
    "sha256": "64 lower-case hex digits",
    "path": _A_PATH,
    "firecracker_path": _A_PATH,
    "jailer_path": _A_PATH,
    "member": "a name in the archive of letters, digits and . _ + -",
    "mode": 'four octal digits such as "0755", readable by the owner and writable by nobody else',
}
"""What the patterns of the manifest's types ask for."""

_TABLES: Mapping[str, type[msgspec.Struct]] = {
    "": Manifest,
    "files": FileTable,
    "images": ImageTable,
}


def load(path: Path, warn: Warn) -> Manifest:
    """The manifest in the file ``path``; HostLacksError if it cannot be read, InvalidInputError if it is wrong."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise HostLacksError(
            f"the manifest {path} cannot be read",
            detail=error.strerror or str(error),
            hint=f"ls -l {path}",
        ) from error
    return parse(data, str(path), warn)


def parse(data: bytes, where: str, warn: Warn) -> Manifest:
    """The manifest in ``data``. ``where`` names it in messages; ``warn`` gets one sentence if names of keys are old."""
    if len(data) > MAX_TEXT_BYTES:
        raise InvalidInputError(
            f"{where} is too long for a manifest", hint="check that it is a bundle's manifest"
        )
    try:
        text = data.decode()
        table = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise InvalidInputError(
            f"{where} is not TOML", detail=str(error), hint="check that it is a bundle's manifest"
        ) from error
    reader = _Reader(text, where)
    present = reader.modern("", table)
    if reader.old:
        warn(f"{where}: {'; '.join(dict.fromkeys(reader.old))}")
    return _convert(reader, present)


def checked(manifest: Manifest, where: str) -> Manifest:
    """``manifest``, which was made and not read, if it would be read back; InvalidInputError else."""
    return _convert(_Reader("", where), msgspec.to_builtins(manifest))


def _convert(reader: _Reader, table: object) -> Manifest:
    try:
        manifest = msgspec.convert(table, type=Manifest)
    except msgspec.ValidationError as error:
        what, _, key = str(error).partition(" - at `$.")
        key = key.rstrip("`")
        reader.wrong(key, _in_words(key, what))
    for key, what in mistakes(manifest):
        reader.wrong(key, what)
    return manifest


def _in_words(key: str, what: str) -> str:
    """What msgspec says, and what a pattern asks for in words."""
    if "matching regex" in what:
        return f"must be {_WORDS[key.rpartition('.')[2]]}"
    return what[:1].lower() + what[1:]


class _Reader:
    """One text: finds lines of keys, brings names up to date."""

    def __init__(self, text: str, where: str) -> None:
        self._lines = text.splitlines()
        self._where = where
        self.old: list[str] = []

    def wrong(self, key: str, what: str, hint: str = "") -> NoReturn:
        """InvalidInputError with the line of ``key`` (``urls``, ``files[1].sha256``)."""
        line = self._line(key)
        place = self._where if line is None else f"{self._where}:{line}"
        subject = f"{key}: " if key else ""
        raise InvalidInputError(f"{place}: {subject}{what}", hint=hint)

    def _line(self, key: str) -> int | None:
        """Where ``key`` is given, or at least the head of its table; None for an inline table."""
        match = re.fullmatch(r"(?:(files|images)\[(\d+)\]\.?)?([^\[]*?)(?:\[\d+\])?", key)
        if match is None:
            return None
        table, number, name = match[1] or "", int(match[2] or 0), match[3]
        names = {name} | {old for old, new in _RENAMED.get(table, {}).items() if new == name}
        tables = {table} | {old for old, new in _RENAMED[""].items() if new == table}
        at, seen, head = ("", 0), 0, None
        for index, line in enumerate(self._lines, 1):
            if found := re.match(r"\s*\[\[?\s*([\w-]+)\s*\]", line):
                seen = seen + 1 if found[1] in tables else seen
                at = (found[1], seen - 1)
                if found[1] in tables and at[1] == number:
                    head = index
            elif (
                at[0] in tables
                and at[1] == (number if table else 0)
                and (given := re.match(r"\s*\"?([\w-]+)\"?\s*=", line))
                and given[1] in names
            ):
                return index
        return head

    def modern(self, name: str, table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        """``table`` with the present names of its keys; InvalidInputError names the nearest of an unknown one."""
        known = _TABLES[name].__struct_fields__
        renamed = _RENAMED[name]
        found: dict[str, Any] = {}
        for key, value in table.items():
            if name == "" and key in _DROPPED:
                self.old.append(f"{key} is not needed any more, {_DROPPED[key]}")
                continue
            present = renamed.get(key, key)
            if present not in known:
                near = difflib.get_close_matches(key, [*known, *renamed], n=1)
                hint = f"did you mean {near[0]}?" if near else f"known keys: {', '.join(known)}"
                self.wrong(prefix + key, "unknown key", hint)
            if present != key:
                self.old.append(f"{key} is called {present} now")
                if present in table:
                    continue
                value = [value] if key == "url" else value  # noqa: PLW2901  one URL was all there could be
            found[present] = self._nested(present, value) if name == "" else value
        return found

    def _nested(self, key: str, value: Any) -> Any:  # noqa: ANN401  what TOML gave; msgspec checks it
        if key not in _TABLES or not isinstance(value, list):
            return value
        return [
            self.modern(key, item, f"{key}[{number}].") if isinstance(item, dict) else item
            for number, item in enumerate(value)
        ]
