"""Looks whether a root holds what its packages say: a stand-alone program of the sandbox, which may read files of any owner.

    result.py ROOT LOCK

It prints one problem a line and ends with 1 if there is any. The database of xbps (``var/db/xbps/pkgdb-0.38.plist``) must have exactly the locked packages, all of them
``installed``, and every file of each (``.<name>-files.plist``) must have its SHA-256; configuration files, which scripts may change, must be there.
"""

from __future__ import annotations

import hashlib
import json
import os
import plistlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.parsers.expat import ExpatError

DATABASE = "var/db/xbps/pkgdb-0.38.plist"
_MOST_TOLD = 40


def main() -> None:
    """See above."""
    root, lock = map(Path, sys.argv[1:])
    wanted = {package["pkgver"] for package in json.loads(lock.read_bytes())["packages"]}
    found = list(_problems(root, wanted))
    for line in found[:_MOST_TOLD]:
        print(line, file=sys.stderr)  # noqa: T201  a program of its own
    sys.exit(1 if found else 0)


def _problems(root: Path, wanted: set[str]) -> Iterator[str]:
    try:
        database = plistlib.loads((root / DATABASE).read_bytes(), fmt=plistlib.FMT_XML)
    except (OSError, ValueError, ExpatError) as error:
        yield f"{DATABASE}: {error}"
        return
    packages = {
        name: props
        for name, props in database.items()
        if isinstance(props, dict) and "pkgver" in props
    }
    there = {props["pkgver"] for props in packages.values()}
    yield from (f"{pkgver} is locked and not installed" for pkgver in sorted(wanted - there))
    yield from (f"{pkgver} is installed and not locked" for pkgver in sorted(there - wanted))
    for name, props in packages.items():
        if props.get("state") != "installed":
            yield f"{props['pkgver']} is not configured but {props.get('state')}"
        yield from _wrong_files(root, name, props)


def _wrong_files(root: Path, name: str, props: dict[str, Any]) -> Iterator[str]:
    """A package without files (as Void's base-devel) has no list, and no digest of one."""
    pkgver, digest = props["pkgver"], props.get("metafile-sha256")
    path = root / f"var/db/xbps/.{name}-files.plist"
    if digest is None and not os.path.lexists(path):
        return
    try:
        data = path.read_bytes()
        lists: dict[str, Any] = plistlib.loads(data, fmt=plistlib.FMT_XML)
    except (OSError, ValueError, ExpatError) as error:
        yield f"{pkgver} has no list of its files: {error}"
        return
    if hashlib.sha256(data).hexdigest() != digest:
        yield f"{pkgver}: the list of its files is not the one that was installed"
    for entry in lists.get("files", []):
        if entry.get("mutable") or "sha256" not in entry:
            continue
        yield from (f"{pkgver}: {entry['file']} {why}" for why in _wrong(root, entry))
    for entry in [*lists.get("conf_files", []), *lists.get("links", [])]:
        if not os.path.lexists(root / entry["file"].lstrip("/")):
            yield f"{pkgver}: {entry['file']} is not there"


def _wrong(root: Path, entry: dict[str, Any]) -> Iterator[str]:
    """Read without following a link at the end: what a package lists as a file must be one."""
    try:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(root / entry["file"].lstrip("/"), flags)
    except OSError as error:
        yield str(error.strerror)
        return
    with os.fdopen(descriptor, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != entry["sha256"]:
            yield "is not as in its package"


if __name__ == "__main__":
    main()
