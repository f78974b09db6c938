"""Inventories of images: SPDX 2.3, the same twice, and what differs between two images."""

import json
import re

import pytest

from banger.images.debian import parse_dpkg
from banger.images.diff import compare, files_differ, packages_differ
from banger.images.files import FileFact
from banger.images.package import Package
from banger.images.spdx import boot_checksums, inventory, package_url
from banger.model.manifest import FileEntry, ImageManifest

STATUS = """Package: bash
Status: install ok installed
Maintainer: Matthias Klose <doko@debian.org>
Architecture: amd64
Version: 5.2.15-2+b7
Homepage: http://tiswww.case.edu/php/chet/bash/bashtop.html

Package: libstdc++6
Status: install ok installed
Source: gcc-12
Maintainer: who knows
Architecture: amd64
Version: 1:12.2.0-14

Package: libstdc--6
Status: install ok installed
Architecture: all
Version: 1
Homepage: javascript:no
"""
MANIFEST = ImageManifest(
    id="d" * 12, name="debian", distribution="debian", release="bookworm", architecture="amd64", created_at="2026-02-03T00:00:00.000Z",
    inputs_digest="0" * 64, disk_bytes=64 << 20, kernel_release="6.1", cmdline="rw",
    files={"rootfs.img": FileEntry(64 << 20, "e" * 64), "vmlinux": FileEntry(3, "f" * 64)},
)  # fmt: skip


@pytest.fixture
def document(tmp_path):
    (tmp_path / "vmlinux").write_bytes(b"abc")
    packages = parse_dpkg(STATUS.encode())
    data = inventory(MANIFEST, packages, "deb/debian", boot_checksums(tmp_path))
    assert data == inventory(MANIFEST, packages[::-1], "deb/debian", boot_checksums(tmp_path))
    return json.loads(data)


def test_the_document_has_what_spdx_requires(document):
    """The required fields of the specification's clauses 6 (document), 7 (packages), 8 (files) and 11 (relationships)."""
    assert (document["spdxVersion"], document["dataLicense"], document["SPDXID"]) == ("SPDX-2.3", "CC0-1.0", "SPDXRef-DOCUMENT")  # fmt: skip
    assert re.fullmatch(r"urn:uuid:[0-9a-f-]{36}", document["documentNamespace"])
    assert document["creationInfo"] == {"created": "2026-01-01T00:00:00Z", "creators": ["Tool: banger"]}  # fmt: skip
    elements = [*document["packages"], *document["files"]]
    ids = [element["SPDXID"] for element in elements]
    assert len(set(ids)) == len(ids) == 5
    assert all(re.fullmatch(r"SPDXRef-[A-Za-z0-9.-]+", one) for one in ids)
    for package in document["packages"]:
        assert {"name", "downloadLocation", "filesAnalyzed"} <= set(package)
    for file in document["files"]:
        assert file["fileName"].startswith("./")
        assert "SHA1" in {checksum["algorithm"] for checksum in file["checksums"]}
    known = {*ids, "SPDXRef-DOCUMENT"}
    related = document["relationships"]
    assert {end for one in related for end in (one["spdxElementId"], one["relatedSpdxElement"])} == known  # fmt: skip
    assert related[0] == {
        "spdxElementId": "SPDXRef-DOCUMENT",
        "relationshipType": "DESCRIBES",
        "relatedSpdxElement": "SPDXRef-Image",
    }


def test_packages_have_their_versions_origins_and_urls(document):
    image, bash, stdc, other = document["packages"]
    assert (image["name"], image["versionInfo"]) == ("debian", "d" * 12)
    assert "rootfs.img " + "e" * 64 in image["comment"]
    assert bash["supplier"] == "Organization: Matthias Klose (doko@debian.org)"
    assert bash["homepage"].startswith("http://tiswww")
    assert stdc["sourceInfo"].endswith("gcc-12")
    assert (other["supplier"], "homepage" in other) == ("NOASSERTION", False)
    urls = [package["externalRefs"][0]["referenceLocator"] for package in (bash, stdc)]
    assert urls == [
        "pkg:deb/debian/bash@5.2.15-2%2Bb7?arch=amd64&distro=bookworm",
        "pkg:deb/debian/libstdc%2B%2B6@1%3A12.2.0-14?arch=amd64&distro=bookworm",
    ]
    assert package_url(Package("a", "1"), "generic", "") == "pkg:generic/a@1"


def test_boot_files_have_their_checksums(document):
    (file,) = document["files"]
    assert [checksum["checksumValue"] for checksum in file["checksums"]] == [
        "a9993e364706816aba3e25717850c26c9cd0d89d",
        "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad",
    ]


def test_the_document_is_valid_by_the_spdx_projects_own_validator(document, tmp_path):
    parser = pytest.importorskip("spdx_tools.spdx.parser.parse_anything", reason="spdx-tools is not installed")  # fmt: skip
    validator = pytest.importorskip("spdx_tools.spdx.validation.document_validator")
    path = tmp_path / "sbom.spdx.json"
    path.write_text(json.dumps(document))
    found = validator.validate_full_spdx_document(parser.parse_file(str(path)), "SPDX-2.3")
    assert [message.validation_message for message in found] == []


def test_packages_differ_by_name_and_version():
    found = packages_differ({"a": "1", "b": "1", "c": "1"}, {"b": "2", "c": "1", "d": "3"})
    assert [(one.what, one.name, one.before, one.after) for one in found] == [
        ("removed", "a", "1", ""),
        ("changed", "b", "1", "2"),
        ("added", "d", "", "3"),
    ]


def test_files_differ_in_what_is_told_and_nothing_else():
    file = FileFact("file", 0o644, 0, 0, 5, "a" * 64)
    link = FileFact("link", 0o777, 0, 0, target="x")
    before = {"/same": file, "/mode": file, "/gone": link, "/turned": file, "/text": file, "/own": file}  # fmt: skip
    after = {
        "/same": file, "/mode": FileFact("file", 0o4755, 0, 0, 5, "a" * 64), "/turned": link, "/new": FileFact("directory", 0o1777, 1, 2),
        "/text": FileFact("file", 0o644, 0, 0, 5, "b" * 64), "/own": FileFact("file", 0o644, 0, 7, 5, "a" * 64),
    }  # fmt: skip
    found = [(one.what, one.name, one.before, one.after) for one in files_differ(before, after)]
    assert found == [
        ("removed", "/gone", "link 0777 0:0 -> x", ""),
        ("changed", "/mode", "0644", "4755"),
        ("added", "/new", "", "directory 1777 1:2"),
        ("changed", "/own", "0:0", "0:7"),
        ("changed", "/text", "sha256:aaaaaaaaaaaa", "sha256:bbbbbbbbbbbb"),
        ("changed", "/turned", "file 0644 5 B sha256:aaaaaaaaaaaa", "link 0777 -> x"),
    ]
    assert compare(MANIFEST, MANIFEST, (before, before)).files == ()
