"""A package that an image has, as its distribution's database tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, order=True)
class Package:
    """What is not known is empty. ``source`` is what it was built from, ``supplier`` who maintains it, ``license`` in the database's words."""

    name: str
    version: str
    architecture: str = ""
    source: str = ""
    supplier: str = ""
    homepage: str = ""
    license: str = ""
