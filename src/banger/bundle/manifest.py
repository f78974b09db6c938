"""The manifest of a runtime bundle: what it holds, and the digests by which every byte of it is trusted.

A manifest names three things, each optional after the one before: the files (path, mode), their contents (size and SHA-256
of each, and the version), and an archive to have them from (URLs, size and SHA-256). docs/reference/runtime-bundle.md is its reference.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Annotated, Final, Literal

import msgspec

FORMAT: Final = 1
FILE_NAME = "manifest.toml"
"""The manifest's name beside the files of a placed bundle."""

_PART = r"[A-Za-z0-9_][A-Za-z0-9._+-]{0,127}"
Digest = Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{64})?\Z")]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 42)]
RelativePath = Annotated[
    str, msgspec.Meta(pattern=rf"\A{_PART}(/{_PART}){{0,7}}\Z", max_length=512)
]
Member = Annotated[str, msgspec.Meta(pattern=rf"\A({_PART}(/{_PART}){{0,15}})?\Z", max_length=512)]
Mode = Annotated[str, msgspec.Meta(pattern=r"\A0[4-7][0145][0145]\Z")]
"""Four octal digits as a string: its owner may read the file, nobody else may write it, no set-id bit."""

Name = Annotated[str, msgspec.Meta(pattern=r"\A[a-z0-9][a-z0-9-]{0,62}\Z")]
Version = Annotated[str, msgspec.Meta(pattern=r"\A([A-Za-z0-9][A-Za-z0-9.+_-]{0,62})?\Z")]


class FileTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A ``[[files]]`` table: a file at ``path`` of the bundle, and as which ``member`` it is in the archive (default: ``path``)."""

    path: RelativePath
    mode: Mode = "0755"
    size_bytes: Size = 0
    sha256: Digest = ""
    member: Member = ""

    @property
    def mode_bits(self) -> int:
        """``mode`` as a number."""
        return int(self.mode, 8)

    @property
    def source(self) -> str:
        """The file's name in the archive."""
        return self.member or self.path


class ImageTable(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An ``[[images]]`` table: the files below the directory ``path`` are a prebuilt image."""

    name: Name
    path: RelativePath


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A whole manifest. Without ``sha256`` no archive is pinned; without digests of the files nothing is pinned yet."""

    format: Literal[1] = FORMAT
    name: Name
    version: Version = ""
    architecture: Literal["x86_64", "aarch64"] = "x86_64"
    urls: tuple[str, ...] = ()
    sha256: Digest = ""
    size_bytes: Size = 0
    other_members: Literal["refuse", "skip"] = "refuse"
    unpacked_max_bytes: Size = 0
    firecracker_path: RelativePath = "firecracker"
    jailer_path: RelativePath | None = None
    files: Annotated[tuple[FileTable, ...], msgspec.Meta(min_length=1, max_length=1000)]
    images: Annotated[tuple[ImageTable, ...], msgspec.Meta(max_length=100)] = ()

    @property
    def pins_contents(self) -> bool:
        """Whether every file's content is known, so that a copy of the files can be verified."""
        return all(file.sha256 for file in self.files)

    @property
    def pins_archive(self) -> bool:
        """Whether an archive is known by its digest."""
        return bool(self.sha256)

    @property
    def jailer(self) -> str | None:
        """The jailer's path; None for a bundle without one."""
        if self.jailer_path is not None:
            return self.jailer_path
        return "jailer" if any(file.path == "jailer" for file in self.files) else None

    @property
    def programs(self) -> tuple[str, ...]:
        """Paths of the programs that banger starts."""
        jailer = self.jailer
        return (self.firecracker_path, jailer) if jailer else (self.firecracker_path,)

    @property
    def title(self) -> str:
        """Name and version, for messages."""
        return f"{self.name} {self.version}".strip()

    @property
    def content_bytes(self) -> int:
        """What all files together take."""
        return sum(file.size_bytes for file in self.files)

    def file(self, path: str) -> FileTable:
        """The table of ``path``; KeyError if there is none."""
        for file in self.files:
            if file.path == path:
                return file
        raise KeyError(path)

    def identity(self) -> str:
        """SHA-256 in hex over all that says what the placed files are: two manifests of one identity place the same bundle,
        wherever they have it from.
        """
        lines = [
            f"{self.format} {self.name} {self.version} {self.architecture}",
            *self.programs,
            *sorted(f"{f.path} {f.mode} {f.size_bytes} {f.sha256}" for f in self.files),
            *sorted(f"{image.name} {image.path}" for image in self.images),
        ]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def to_toml(manifest: Manifest) -> str:
    """The manifest as text that `banger.bundle.reading.parse` reads back to an equal one; the same manifest gives the same text."""
    tables: list[tuple[str, msgspec.Struct]] = [("", manifest)]
    tables += [("[[files]]", file) for file in manifest.files]
    tables += [("[[images]]", image) for image in manifest.images]
    blocks = ["\n".join([*filter(None, [head]), *_lines(table)]) for head, table in tables]
    return "\n\n".join(blocks) + "\n"


def _lines(table: msgspec.Struct) -> Iterator[str]:
    """``key = value`` of all that is not the default, and of what a reader looks for. No string that the manifest allows
    needs escaping.
    """
    for field in msgspec.structs.fields(table):
        value = getattr(table, field.name)
        told = value != field.default or field.name in {"format", "architecture", "mode"}
        if field.name in {"files", "images"} or not told:
            continue
        match value:
            case tuple():
                items = ", ".join(f'"{item}"' for item in value)
                yield f"{field.name} = [{items}]"
            case int():
                yield f"{field.name} = {value}"
            case _:
                yield f'{field.name} = "{value}"'
