"""What of a local tree goes into a bundle: ``firecracker`` and ``jailer``, and what lies below ``images/NAME``."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

from banger.bundle.manifest import ImageTable
from banger.model.errors import HostLacksError, InvalidInputError, NotFoundError

PROGRAMS: Final = ("firecracker", "jailer")
SUMS: Final = "SHA256SUMS"


@dataclass(frozen=True, slots=True)
class Taken:
    """A file of the tree, and its path and mode in the bundle."""

    source: Path
    path: str
    mode: str


def choose(tree: Path, architecture: str) -> list[Taken]:
    """The files of the bundle, sorted by path."""
    if not tree.is_dir():
        raise NotFoundError(f"{tree} is no directory", hint=f"ls -l {tree.parent}")
    taken = [
        Taken(source, name, "0755")
        for name in PROGRAMS
        if (source := _program(tree, name, architecture)) is not None
    ]
    if not taken or taken[0].path != PROGRAMS[0]:
        raise NotFoundError(
            f"no firecracker for {architecture} is in {tree}",
            detail=f"looked for firecracker and firecracker-v*-{architecture}",
            hint=f"ls {tree}",
        )
    for path in sorted((tree / "images").rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise InvalidInputError(f"{path} is neither file nor directory", hint=f"ls -l {path}")
        if path.is_file():
            taken.append(Taken(path, str(path.relative_to(tree)), "0444"))
    return sorted(taken, key=lambda one: one.path)


def release_names(tree: Path, name: str, architecture: str) -> list[Path]:
    """Files that are called as a release of Firecracker calls the program ``name``: ``firecracker-v1.14.0-x86_64``."""
    return sorted(tree.glob(f"{name}-v*-{architecture}"))


def _program(tree: Path, name: str, architecture: str) -> Path | None:
    found = [tree / name] if (tree / name).exists() else release_names(tree, name, architecture)
    if len(found) > 1:
        raise InvalidInputError(
            f"{tree} has more than one {name}",
            detail="\n".join(path.name for path in found),
            hint="name the one that is meant just so",
        )
    return found[0] if found else None


def version_of(taken: Sequence[Taken]) -> str:
    """The version in the name of a release's firecracker; InvalidInputError if it has none."""
    for one in taken:
        if match := re.fullmatch(
            r"firecracker-v([0-9][0-9A-Za-z.+-]*)-[a-z0-9_]+", one.source.name
        ):
            return match[1]
    raise InvalidInputError(
        "the version is not known", hint="give it with --version, for example 1.14.0"
    )


def images_of(taken: Sequence[Taken]) -> tuple[ImageTable, ...]:
    """The images that the files make up."""
    names = {one.path.split("/")[1] for one in taken if one.path.count("/") >= 2}
    return tuple(ImageTable(name=name, path=f"images/{name}") for name in sorted(names))


def open_source(source: Path) -> BinaryIO:
    """A regular file of the tree, open; HostLacksError or InvalidInputError."""
    try:
        descriptor = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise HostLacksError(
            f"{source} cannot be read", detail=error.strerror or "", hint=f"ls -l {source}"
        ) from error
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise InvalidInputError(f"{source} is no file", hint=f"ls -l {source}")
    return os.fdopen(descriptor, "rb")


def sums_of(tree: Path) -> dict[str, str]:
    """What ``SHA256SUMS`` of a Firecracker release says, by file name."""
    try:
        text = (tree / SUMS).read_text(errors="replace")
    except FileNotFoundError:
        return {}
    pairs = (re.fullmatch(r"([0-9a-f]{64}) [ *](?:\./)?(\S+)", line) for line in text.splitlines())
    return {pair[2]: pair[1] for pair in pairs if pair}
