"""The index of an XBPS repository, ``<arch>-repodata``: a compressed tar of ``index.plist`` and ``index-meta.plist``, in this order.

Read in xbps's lib/repo.c: names have no ``./``; index-meta is empty, or the word DEADBEEF, where the repository is not signed. Nothing in it is signed, so
everything is bounded and checked, and nothing counts before it is in a lock file.
"""

from __future__ import annotations

import io
import plistlib
import re
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from xml.parsers.expat import ExpatError

from banger.host import tars
from banger.images.decompress import decompress
from banger.model.errors import BangerError, InvalidInputError

MAX_INDEX_BYTES = 64 << 20
_MAX_PLAIN_BYTES = 512 << 20
_MAX_PACKAGE_BYTES = 4 << 30
_UNSIGNED = {b"", b"DEADBEEF"}
NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+-]{0,99}", re.ASCII)
PKGVER = re.compile(
    r"([A-Za-z0-9_][A-Za-z0-9_.+-]{0,99})-([A-Za-z0-9_.+~:]*[0-9][A-Za-z0-9_.+~:]*_[0-9]+)",
    re.ASCII,
)
"""Name, version and revision: ``bash-5.2.21_1`` (lib/util.c, xbps_pkg_version)."""
SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Entry:
    """A package as the index has it."""

    pkgver: str
    architecture: str
    sha256: str
    size_bytes: int

    @property
    def file_name(self) -> str:
        """Its name in the repository."""
        return f"{self.pkgver}.{self.architecture}.xbps"


@dataclass(frozen=True, slots=True)
class Index:
    """Packages by name, and the public key (PEM) with which the repository says they are signed; empty if it is not signed."""

    packages: Mapping[str, Mapping[str, Any]]
    key: bytes

    def entry(self, name: str, architecture: str) -> Entry:
        """The package ``name``; InvalidInputError if it is not there, or for another architecture, or malformed."""
        props = self.packages.get(name)
        if not isinstance(props, dict):
            raise InvalidInputError(f"the index has no package {name!r}", hint="banger image lock void")  # fmt: skip
        pkgver, arch, sha256, size = (
            props.get(key) for key in ("pkgver", "architecture", "filename-sha256", "filename-size")
        )
        match = PKGVER.fullmatch(pkgver) if isinstance(pkgver, str) else None
        if (
            match is None
            or match[1] != name
            or arch not in (architecture, "noarch")
            or not (isinstance(sha256, str) and SHA256.fullmatch(sha256))
            or not (isinstance(size, int) and 0 < size <= _MAX_PACKAGE_BYTES)
        ):
            raise _malformed(
                f"package {name}: pkgver {pkgver!r}, architecture {arch!r}, filename-sha256 {sha256!r}, filename-size {size!r}"
            )
        return Entry(str(pkgver), str(arch), str(sha256), int(size))


def parse_index(data: bytes) -> Index:
    """The content of a repodata file; InvalidInputError if it is not one, or larger than one can be."""
    plain = decompress(data, _MAX_PLAIN_BYTES, what="the repository's index")
    wanted = {"index.plist": b"", "index-meta.plist": b""}
    try:
        with tars.open_stream(io.BytesIO(plain)) as archive:
            for name, member in zip(wanted, tars.members(archive), strict=False):
                file = archive.extractfile(member) if member.isreg() else None
                if member.name != name or file is None:
                    raise _malformed(f"member {member.name!r} in the place of {name!r}")
                wanted[name] = file.read()
    except (BangerError, tarfile.TarError) as error:
        raise _malformed(f"{error} {getattr(error, 'detail', '')}".strip()) from error
    packages = _dictionary(wanted["index.plist"], "index.plist")
    meta = wanted["index-meta.plist"]
    if meta.strip() in _UNSIGNED:
        return Index(packages, b"")
    key = _dictionary(meta, "index-meta.plist").get("public-key", b"")
    return Index(packages, key if isinstance(key, bytes) else b"")


def _dictionary(data: bytes, name: str) -> dict[str, Any]:
    found = read_plist(data)
    if found is None:
        raise _malformed(f"{name} is no property list")
    return found


def read_plist(data: bytes) -> dict[str, Any] | None:
    """The dictionary in an XML property list; None if there is none. Entities, which could grow without end, are refused by plistlib."""
    try:
        found = plistlib.loads(data, fmt=plistlib.FMT_XML)
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, ExpatError):  # fmt: skip
        return None  # whatever plistlib says of a damaged one
    return found if isinstance(found, dict) else None


def _malformed(detail: str) -> InvalidInputError:
    return InvalidInputError(
        "the repository's index is malformed", detail=detail[:500], hint="lock again, or take another mirror: banger config show"
    )  # fmt: skip
