"""What a recipe puts into an image beside packages: files and hooks, read from where the recipe says."""

from __future__ import annotations

import hashlib
import stat
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any

import msgspec

from banger.images.mistake import Fail
from banger.images.recipe_keys import FileTable, HookTable
from banger.images.recipe_text import RecipeText

_MOST_HOOK_BYTES = 1 << 20
_MOST_PATH_CHARS = 1024
_BANGERS = (  # made by the image build, by the identity drive or by the kernel: a file there would be lost or do harm
    "/boot", "/dev", "/etc/banger", "/etc/hostname", "/etc/hosts", "/etc/machine-id", "/etc/resolv.conf", "/proc", "/run",
    "/sys", "/tmp", "/usr/lib/banger", "/var/tmp",  # noqa: S108  the guest's
)  # fmt: skip


class ExtraFile(msgspec.Struct, frozen=True):
    """A file of the guest: ``content``, or what the host's file ``source`` has; ``digest`` is the SHA-256 of it."""

    path: str
    source: str
    content: str
    digest: str
    mode: int
    owner: str
    group: str


class Hook(msgspec.Struct, frozen=True):
    """A script: its text, and ``label``, what it is called; ``origin`` is where it stands."""

    label: str
    text: str
    digest: str
    origin: str = ""


def absolute_sources(text: RecipeText) -> dict[str, Any]:
    """A copy of the text's table in which the files that it names relative to itself are absolute."""
    table = dict(text.table)
    here = text.path.absolute().parent
    if isinstance(table.get("packages"), str):
        table["packages"] = str(here.parent / table["packages"])  # config/packages.debian
    for name, key in (("files", "source"), ("hooks", "script")):
        if isinstance(table.get(name), list):
            table[name] = [
                {**one, key: str(here / one[key])}
                if isinstance(one, dict) and isinstance(one.get(key), str)
                else one
                for one in table[name]
            ]
    return table


def load_files(tables: list[FileTable], at: Callable[[int], Fail]) -> list[ExtraFile]:
    """The ``[[files]]`` with the digests of their contents; ``at(number)`` makes errors. InvalidInputError."""
    found = []
    for number, table in enumerate(tables):
        fail = at(number)
        _check_guest_path(table.path, fail)
        if (table.source is None) == (table.content is None):
            raise fail("a file has either 'source' or 'content'", hint="write one of them")
        source = table.source or ""
        if table.content is None:
            digest = _digest(Path(source), fail, "source")
        else:
            digest = hashlib.sha256(table.content.encode()).hexdigest()
        owner, _, group = table.owner.partition(":")
        found.append(
            ExtraFile(
                table.path, source, table.content or "", digest, int(table.mode, 8), owner, group or owner
            )
        )  # fmt: skip
    return found


def load_hooks(tables: list[HookTable], at: Callable[[int], Fail]) -> list[Hook]:
    """The ``[[hooks]]`` with their texts. InvalidInputError."""
    found = []
    for number, table in enumerate(tables):
        fail = at(number)
        if (table.script is None) == (table.run is None):
            raise fail("a hook has either 'script' or 'run'", hint="write one of them")
        text, label = table.run or "", f"hooks[{number}]"
        if table.script is not None:
            path = Path(table.script)
            _check_regular(path, fail, "script")
            data = path.read_bytes()
            label = f"{label}, {path.name}"
            try:
                text = data.decode()
            except UnicodeDecodeError:
                raise fail(f"hook {path} is not text", "script", hint="write a script") from None
            if len(data) > _MOST_HOOK_BYTES:
                raise fail(f"hook {path} is too long", "script", hint="put its data into [[files]]")
        if not text.strip() or "\0" in text:
            raise fail("a hook has no text", hint="write a script")
        digest = hashlib.sha256(text.encode()).hexdigest()
        found.append(Hook(label, text, digest, fail(label).what.rpartition(": ")[0]))
    return found


def _check_guest_path(path: str, fail: Fail) -> None:
    pure = PurePosixPath(path)
    printable = path.isprintable() and len(path) <= _MOST_PATH_CHARS
    if not path.startswith("/") or path.startswith("//") or str(pure) != path or path == "/":
        raise fail(f"path {path!r} is not absolute and plain", "path", hint="write it as /etc/motd")
    if ".." in pure.parts or not printable:
        raise fail(f"path {path!r} is not possible", "path", hint="write it without '..'")
    for banger in _BANGERS:
        if pure.is_relative_to(banger):
            raise fail(f"path {path!r} is not a recipe's: banger or the kernel makes {banger}", "path", hint="choose another path")  # fmt: skip


def _check_regular(path: Path, fail: Fail, key: str) -> None:
    try:
        found = path.stat()
        with path.open("rb"):
            pass
    except OSError as error:
        raise fail(f"{key} {path} cannot be read", key, detail=str(error.strerror), hint=f"ls -l {path}") from error  # fmt: skip
    if not stat.S_ISREG(found.st_mode):
        raise fail(f"{key} {path} is no regular file", key, hint="name a file")


def _digest(path: Path, fail: Fail, key: str) -> str:
    try:
        if path.exists() and not path.is_file():
            raise fail(f"{key} {path} is no regular file", key, hint="name a file")
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise fail(f"{key} {path} cannot be read", key, detail=str(error.strerror), hint=f"ls -l {path}") from error  # fmt: skip
