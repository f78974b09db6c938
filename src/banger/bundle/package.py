"""Make a bundle and its manifest from a local tree. The same files give the same bytes: sorted, no times, no owners.

The tree holds ``firecracker`` and ``jailer``, or has them as an unpacked Firecracker release does (``firecracker-v1.14.0-x86_64``), and
optionally ``images/NAME/…``. Where it has a ``SHA256SUMS``, what is taken is compared with that.
"""

from __future__ import annotations

import gzip
import hashlib
import os
import tarfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Final, Literal, cast

import msgspec

from banger.bundle import elf, place, reading
from banger.bundle.manifest import FileTable, Manifest, to_toml
from banger.bundle.report import Reporter, host_errors
from banger.bundle.tree import (
    PROGRAMS,
    SUMS,
    Taken,
    choose,
    images_of,
    open_source,
    sums_of,
    version_of,
)
from banger.host import fs
from banger.model.errors import InvalidInputError

_LEVEL: Final = 9


@dataclass(frozen=True, slots=True)
class Order:
    """What to make: from ``tree`` into the directory ``out``. Without ``version`` it is taken from the release's file names."""

    tree: Path
    out: Path
    name: str = "firecracker"
    version: str = ""
    architecture: str = ""
    urls: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Package:
    """What was made: ``archive``, and ``manifest_path`` with the ``manifest`` that verifies it."""

    archive: Path
    manifest_path: Path
    manifest: Manifest


def package(order: Order, reporter: Reporter) -> Package:
    """Make the bundle. NotFoundError without a firecracker in the tree, InvalidInputError for a tree or words that cannot be
    packaged, HostLacksError if it cannot be read or written.
    """
    architecture = order.architecture or elf.host_architecture()
    taken = choose(order.tree, architecture)
    draft = reading.checked(
        Manifest(
            name=order.name,
            version=order.version or version_of(taken),
            architecture=cast("Literal['x86_64']", architecture),  # checked in the same breath
            files=tuple(FileTable(path=one.path, mode=one.mode) for one in taken),
            images=images_of(taken),
        ),
        "the bundle",
    )
    stem = f"{draft.name}-{draft.version}-{architecture}"
    archive, manifest_path = order.out / f"{stem}.tar.gz", order.out / f"{stem}.toml"
    partial = order.out / f".{archive.name}.{os.getpid()}"
    with host_errors(order.out, "banger runtime package"):
        place.make_public_dir(order.out)
        try:
            manifest = _write(partial, draft, taken, reporter)
            _compare(taken, manifest, sums_of(order.tree))
            urls = tuple(u + archive.name if u.endswith("/") else u for u in order.urls)
            manifest = reading.checked(msgspec.structs.replace(manifest, urls=urls), "the bundle")
            partial.replace(archive)
        finally:
            partial.unlink(missing_ok=True)
        fs.write_atomic(manifest_path, to_toml(manifest).encode(), mode=0o644)
    reporter.done("package", f"{len(taken)} files")
    return Package(archive, manifest_path, manifest)


def _write(archive: Path, draft: Manifest, taken: Sequence[Taken], reporter: Reporter) -> Manifest:
    """Write the archive; the draft with sizes and digests of what went into it."""
    total = sum(fs.length_bytes(one.source) for one in taken)
    files: list[FileTable] = []
    with (
        archive.open("wb") as raw,
        gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as zipped,
        tarfile.open(
            fileobj=cast("IO[bytes]", zipped), mode="w|", format=tarfile.PAX_FORMAT
        ) as tar,
    ):
        for one in taken:
            files.append(_add(tar, one, draft.architecture))
            reporter.advance("package", sum(file.size_bytes for file in files), total)
    with archive.open("rb") as made:
        digest = hashlib.file_digest(made, "sha256").hexdigest()
    return msgspec.structs.replace(
        draft, files=tuple(files), sha256=digest, size_bytes=archive.stat().st_size
    )


def _add(tar: tarfile.TarFile, one: Taken, architecture: str) -> FileTable:
    with open_source(one.source) as content:
        head = os.pread(content.fileno(), elf.HEADER_BYTES, 0)
        why = elf.why_not_runnable(head, architecture) if one.path in PROGRAMS else ""
        if why:
            raise InvalidInputError(
                f"{one.source} is no program for {architecture}",
                detail=why,
                hint="give the right --architecture, or another tree",
            )
        source = _Hashing(content)
        member = tarfile.TarInfo(one.path)
        member.size = os.fstat(content.fileno()).st_size
        member.mode = int(one.mode, 8)
        tar.addfile(member, cast("IO[bytes]", source))
    return FileTable(
        path=one.path, mode=one.mode, size_bytes=member.size, sha256=source.digest.hexdigest()
    )


def _compare(taken: Sequence[Taken], manifest: Manifest, sums: Mapping[str, str]) -> None:
    """What the release's own list says of what was taken."""
    for one in taken:
        digest = manifest.file(one.path).sha256
        known = sums.get(one.source.name, digest)
        if known != digest:
            raise InvalidInputError(
                f"{one.source} is not what {SUMS} says",
                detail=f"its SHA-256 is {digest}\n{SUMS} says {known}",
                hint="unpack the release again",
            )


class _Hashing:
    """Reads on from ``content`` and digests what goes by."""

    def __init__(self, content: BinaryIO) -> None:
        self._content = content
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        """Up to ``size`` bytes."""
        data = self._content.read(size)
        self.digest.update(data)
        return data
