"""What a user asks of ``image import`` and ``image export``. Rules are checked when a value is built; the files are looked at elsewhere."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from banger.model.errors import InvalidInputError
from banger.model.ids import check_name
from banger.model.manifest import Service

FORMATS: Final = ("banger", "oci")
_REF = re.compile(r"[!-~]{1,300}")
_NO_NAME = re.compile(r"[^a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class ImageImport:
    """An image out of one file or OCI layout directory. ``kernel_from`` is the image whose boot stack a container image gets.

    ``ref`` picks one of several images in an archive; ``start_command`` makes the container's command a service of the guest.
    """

    path: Path
    name: str | None = None
    kernel_from: str | None = None
    ref: str | None = None
    start_command: bool = False
    services: tuple[Service, ...] | None = None
    replace: bool = False

    def __post_init__(self) -> None:
        check_absolute(self.path)
        if self.name is not None:
            check_name(self.name, what="image")
        check_ref(self.ref)

    @property
    def default_name(self) -> str:
        """A name out of that of the file, which may be nothing that an image can be called."""
        text = self.path.name.lower().partition(".")[0]
        return _NO_NAME.sub("-", text).strip("-")[:50].strip("-") or "imported"


@dataclass(frozen=True, slots=True)
class ImageExport:
    """An image, by name or id, written to ``path``: one file of banger's own, or an OCI layout (a directory, or a file ending in .tar)."""

    image: str
    path: Path
    format: str = "banger"
    replace: bool = False

    def __post_init__(self) -> None:
        check_absolute(self.path)
        if self.format not in FORMATS:
            raise InvalidInputError(
                f"format {self.format[:40]!r} is not known", hint=f"known: {', '.join(FORMATS)}"
            )


def check_absolute(path: Path) -> None:
    """InvalidInputError unless ``path`` is one that a daemon elsewhere can follow."""
    if not path.is_absolute() or "\0" in str(path) or not path.name:
        raise InvalidInputError(
            f"{str(path)[:200]!r} is no absolute path of a file", hint=f"write it as /…/{path.name}"
        )


def check_ref(ref: str | None) -> None:
    """InvalidInputError unless ``ref`` can name an image in an archive."""
    if ref is not None and not _REF.fullmatch(ref):
        raise InvalidInputError(
            f"{ref[:60]!r} is no reference of an image", hint="write, for example, python:3.12"
        )
