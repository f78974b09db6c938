"""Where banger itself is: in a source checkout or installed below a prefix, and the ``config`` directory that comes with it."""

from __future__ import annotations

import sys
from pathlib import Path

import banger


def package_dir() -> Path:
    """The directory of banger's own package."""
    return Path(banger.__file__).resolve().parent


def checkout() -> Path | None:
    """The source checkout that this banger runs from; None if it is installed."""
    package = package_dir()
    top = package.parents[1]
    return top if package.parent.name == "src" and (top / "pyproject.toml").is_file() else None


def install_prefix() -> Path:
    """The prefix that this banger is installed in, so that its programs are in ``<prefix>/bin``; of a checkout the environment's.

    It is found from the package's own place, so that CLI and daemon agree however they were started.
    """
    for parent in package_dir().parents:
        if parent.name in {"lib", "lib64"}:
            return parent.parent
    return Path(sys.prefix)


def config_dir() -> Path:
    """Recipes, package lists and manifests that come with banger; the directory may be missing if banger is damaged."""
    packaged = package_dir() / "_config"
    return packaged if packaged.is_dir() else package_dir().parents[1] / "config"
