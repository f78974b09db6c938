"""An image's inventory as SPDX 2.3 in JSON (https://spdx.github.io/spdx-spec/v2.3/): packages, and the files that boot it.

Equal images have equal documents. What nobody knows is NOASSERTION. SPDX wants SHA-1 of whole files, which would take minutes of
an 8 GiB disk that is mostly holes: the disks are told by banger's own digest, in the image's comment.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from banger.images.package import Package
from banger.model.manifest import ImageManifest

SBOM = "sbom.spdx.json"
_NAMESPACE = uuid.UUID("6f4b7f0e-2f0c-5d0e-9d57-6b616e676573")
_CREATED = "2026-01-01T00:00:00Z"  # as all times in an image
_NONE = "NOASSERTION"
_DOCUMENT, _IMAGE = "SPDXRef-DOCUMENT", "SPDXRef-Image"
_HOMEPAGE = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]+)?(/[!-~]*)?", re.ASCII)
_PERSON = re.compile(r"\s*([^<>]*[^<>\s])\s*<([^<>\s]+@[^<>\s]+)>\s*")
_BOOT_FILES = ("initramfs.img", "vmlinux", "vmlinuz")


def inventory(
    manifest: ImageManifest, packages: Sequence[Package], purl: str, checksums: Mapping[str, tuple[str, str]]
) -> bytes:  # fmt: skip
    """The document. ``purl`` is the type and namespace of package URLs (``deb/debian``), ``checksums`` the SHA-1 and SHA-256 of
    the boot files (`boot_checksums`).
    """
    ids = _Ids()
    listed = [_package(package, ids, purl, manifest.release) for package in sorted(packages)]
    files = [_file(name, digests, ids) for name, digests in sorted(checksums.items())]
    disks = ", ".join(
        f"{name} {entry.digest}" for name, entry in sorted(manifest.files.items()) if name not in checksums
    )  # fmt: skip
    image = {
        "SPDXID": _IMAGE,
        "name": manifest.name,
        "versionInfo": manifest.id,
        "supplier": _NONE,
        "downloadLocation": _NONE,
        "filesAnalyzed": False,
        "licenseConcluded": _NONE,
        "licenseDeclared": _NONE,
        "copyrightText": _NONE,
        "primaryPackagePurpose": "OPERATING_SYSTEM",
        "summary": f"{manifest.distribution} {manifest.release} {manifest.architecture}, Linux {manifest.kernel_release}",
        "comment": f"disks by banger's digest of sparse files (docs/adr/0008): {disks}",
    }
    related = [(_DOCUMENT, "DESCRIBES", _IMAGE)]
    related += [(_IMAGE, "CONTAINS", item["SPDXID"]) for item in listed]
    related += [
        (_DOCUMENT, "DESCRIBES", item["SPDXID"]) for item in files
    ]  # only analysed packages may contain any
    document = {
        "spdxVersion": "SPDX-2.3",
        "dataLicense": "CC0-1.0",
        "SPDXID": _DOCUMENT,
        "name": f"{manifest.name}-{manifest.id}",
        "documentNamespace": f"urn:uuid:{uuid.uuid5(_NAMESPACE, manifest.id)}",
        "creationInfo": {"created": _CREATED, "creators": ["Tool: banger"]},
        "packages": [image, *listed],
        "files": files,
        "relationships": [
            {"spdxElementId": one, "relationshipType": kind, "relatedSpdxElement": other}
            for one, kind, other in related
        ],
    }
    return json.dumps(document, indent=1, ensure_ascii=False).encode() + b"\n"


def boot_checksums(directory: Path) -> dict[str, tuple[str, str]]:
    """SHA-1 (SPDX asks for it; nothing is believed by it) and SHA-256 of the boot files in the image's directory."""
    found = {}
    for name in _BOOT_FILES:
        path = directory / name
        if path.is_file():
            data = path.read_bytes()
            sha1 = hashlib.sha1(data, usedforsecurity=False)
            found[name] = (sha1.hexdigest(), hashlib.sha256(data).hexdigest())
    return found


def package_url(package: Package, kind: str, release: str) -> str:
    """https://github.com/package-url/purl-spec; ``kind`` as ``deb/debian``."""
    words = {"arch": package.architecture, "distro": release}
    given = "&".join(
        f"{key}={quote(value, safe='')}" for key, value in sorted(words.items()) if value
    )
    version = quote(package.version, safe="")
    return f"pkg:{kind}/{quote(package.name, safe='')}@{version}{'?' if given else ''}{given}"


class _Ids:
    """Identifiers of the document: letters, digits, dots and hyphens, each once."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def new(self, kind: str, name: str) -> str:
        base = f"SPDXRef-{kind}-{re.sub(r'[^A-Za-z0-9.-]', '-', name)}"
        found, number = base, 1
        while found in self._taken:
            number += 1
            found = f"{base}-{number}"
        self._taken.add(found)
        return found


def _package(package: Package, ids: _Ids, purl: str, release: str) -> dict[str, Any]:
    more: dict[str, str] = {}
    if package.source:
        more["sourceInfo"] = f"built from the source package {package.source}"
    if _HOMEPAGE.fullmatch(package.homepage):
        more["homepage"] = package.homepage
    if package.license:
        more["licenseComments"] = f"the package says: {package.license}"
    return {
        "SPDXID": ids.new("Package", package.name),
        "name": package.name,
        "versionInfo": package.version,
        "supplier": _supplier(package.supplier),
        "downloadLocation": _NONE,
        "filesAnalyzed": False,
        "licenseConcluded": _NONE,
        "licenseDeclared": _NONE,
        "copyrightText": _NONE,
        **more,
        "externalRefs": [
            {
                "referenceCategory": "PACKAGE-MANAGER",
                "referenceType": "purl",
                "referenceLocator": package_url(package, purl, release),
            }
        ],
    }


def _supplier(said: str) -> str:
    match = _PERSON.fullmatch(said)
    return f"Organization: {match[1]} ({match[2]})" if match else _NONE


def _file(name: str, digests: tuple[str, str], ids: _Ids) -> dict[str, Any]:
    return {
        "SPDXID": ids.new("File", name),
        "fileName": f"./{name}",
        "fileTypes": ["BINARY"],
        "checksums": [
            {"algorithm": "SHA1", "checksumValue": digests[0]},
            {"algorithm": "SHA256", "checksumValue": digests[1]},
        ],
        "licenseConcluded": _NONE,
        "licenseInfoInFiles": [_NONE],
        "copyrightText": _NONE,
    }
