"""Where a runtime bundle is, and what lies in there.

::

    ROOT/current  -> versions/1.14.0-0123456789ab-7f3a    what VMs are started with
    ROOT/previous -> versions/1.13.0-…                    what `banger runtime rollback` returns to
    ROOT/versions/…/{firecracker,jailer,manifest.toml}    never changed after they are complete
    ROOT/download/<sha256>.part                           an archive on its way, kept for the next try
    ROOT/.lock                                            one writer at a time

Readers need no lock: `current` changes by one rename.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from banger.bundle.manifest import FILE_NAME
from banger.host import own_files

SHIPPED = "runtime-bundle.toml"


@dataclass(frozen=True, slots=True)
class Root:
    """The directory of a bundle and of the version before it. ``origin`` says how it was found: ``checkout``,
    ``installed`` or the configuration key.
    """

    path: Path
    origin: str = ""

    @property
    def lock(self) -> Path:
        """The lock of writers."""
        return self.path / ".lock"

    @property
    def versions(self) -> Path:
        """One directory a placed version, and ``.new-*`` while one is being made."""
        return self.path / "versions"

    @property
    def downloads(self) -> Path:
        """Archives on their way."""
        return self.path / "download"

    @property
    def current(self) -> Path:
        """The link to the version in use."""
        return self.path / "current"

    @property
    def coming(self) -> Path:
        """The link that is about to become `current`: there only while a switch is under way."""
        return self.path / ".current.new"

    @property
    def previous(self) -> Path:
        """The link to the version before it."""
        return self.path / "previous"

    def target(self, link: Path) -> Path | None:
        """The version directory that ``link`` (`current`, `previous`) names; None without link, or if it leads elsewhere.

        The directory need not exist.
        """
        try:
            name = Path(os.readlink(link))  # noqa: PTH115  what the link says, not where it leads
        except OSError:
            return None
        if len(name.parts) != 2 or name.parts[0] != self.versions.name or name.parts[1] == "..":
            return None
        return self.versions / name.parts[1]


def manifest_of(version: Path) -> Path:
    """The manifest of a placed version."""
    return version / FILE_NAME


def installed_root(prefix: Path) -> Root:
    """``<prefix>/lib/banger``, which is ``../lib/banger`` for a program in ``<prefix>/bin``."""
    return Root(prefix / "lib" / "banger", "installed")


def default_root(configured: Path | None) -> Root:
    """The root that is used: the configured one, ``build/runtime`` in a source checkout, else ``../lib/banger``."""
    if configured is not None:
        return Root(configured, "bundle_dir")
    top = own_files.checkout()
    if top is not None:
        return Root(top / "build" / "runtime", "checkout")
    return installed_root(own_files.install_prefix())


def legacy_dir() -> Path | None:
    """``runtime`` of a source checkout, where older releases had their bundle; None unless a bundle is in there."""
    top = own_files.checkout()
    if top is None:
        return None
    names = ("firecracker", FILE_NAME, SHIPPED)
    return top / "runtime" if any((top / "runtime" / name).exists() for name in names) else None


def shipped_manifest() -> Path:
    """The manifest that comes with banger; it need not exist."""
    return own_files.config_dir() / SHIPPED
