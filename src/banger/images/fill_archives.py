"""Puts packages of the download cache where apt looks before it downloads: those whose SHA-256 stands in the indices just fetched.

A program of its own, that apt runs in the build's namespaces when it has updated (and has verified) its indices; standard library only:
``fill_archives.py CACHE ARCHIVES``. The cache is content-addressed (``CACHE/<sha256>``), and each file is digested again here: so a
package that is taken from the cache is as well verified as one that was downloaded. A damaged one is removed.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import sys
from pathlib import Path

_DIGEST = re.compile(rb"^SHA256: ([0-9a-f]{64})$", re.MULTILINE)
_FIELD = re.compile(rb"^(Package|Version|Architecture): (\S+)$", re.MULTILINE)


def archive_name(package: str, version: str, architecture: str) -> str:
    """What apt calls the file: https://salsa.debian.org/apt-team/apt/-/blob/main/apt-pkg/acquire-item.cc (pkgAcqArchive)."""

    def quoted(text: str, bad: str) -> str:
        return "".join(
            f"%{ord(c):02x}" if c in bad or c == "%" or not " " < c < "\x7f" else c for c in text
        )

    return f"{quoted(package, '_:')}_{quoted(version, '_:')}_{quoted(architecture, '_:.')}.deb"


def wanted(lists: Path, known: set[str]) -> dict[str, str]:
    """The digests of ``known`` that an index has, with apt's names for the files."""
    found: dict[str, str] = {}
    for index in sorted(lists.glob("*_Packages")):
        text = index.read_bytes()
        for match in _DIGEST.finditer(text):
            digest = match[1].decode()
            if digest in known:
                start = text.rfind(b"\n\n", 0, match.start()) + 1
                end = text.find(b"\n\n", match.end())
                block = text[start : end if end >= 0 else len(text)]
                fields = {m[1].decode(): m[2].decode() for m in _FIELD.finditer(block)}
                found[digest] = archive_name(
                    fields["Package"], fields["Version"], fields["Architecture"]
                )
    return found


def fill(lists: Path, cache: Path, archives: Path) -> int:
    """Link or copy what the indices have; how many there were."""
    number = 0
    known = {path.name for path in cache.iterdir()}
    for digest, name in sorted(wanted(lists, known).items()):
        source, target = cache / digest, archives / name
        try:
            with source.open("rb") as file:
                if hashlib.file_digest(file, "sha256").hexdigest() != digest:
                    source.unlink()
                    sys.stderr.write(f"banger: {digest} in the download cache was damaged\n")
                    continue
            place(source, target)
            os.utime(source)  # used now: what was not used for long goes first
        except FileNotFoundError:
            continue  # pruned meanwhile
        except FileExistsError:
            pass
        number += 1
    return number


def place(source: Path, target: Path) -> None:
    """Make ``target`` a link to ``source``, or a copy where that cannot be; FileExistsError."""
    try:
        os.link(source, target)
    except FileExistsError:
        raise
    except OSError:
        part = target.with_name(f".{target.name}.part")
        shutil.copyfile(source, part)
        part.rename(target)


def main() -> None:
    """Apt says in $APT_CONFIG which root it works for."""
    found = re.search(r'^Dir "(.*)";$', Path(os.environ["APT_CONFIG"]).read_text(), re.MULTILINE)
    if found is not None:
        count = fill(Path(found[1]) / "var/lib/apt/lists", Path(sys.argv[1]), Path(sys.argv[2]))
        sys.stderr.write(f"banger: {count} packages are in the download cache\n")


if __name__ == "__main__":
    main()
