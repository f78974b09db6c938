"""What an image build would do, and how two images differ: values that cross areas."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class PlannedStage:
    """A stage of a build, in the order of the stages; ``commands`` are the programs that it runs."""

    name: str
    detail: str
    commands: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True, slots=True)
class ImagePlan:
    """A build before it is run. ``up_to_date`` is the id of an image that would come out the same, or empty.

    ``mirrors`` is empty for the tools' own default. ``files`` and ``hooks`` map paths and labels to SHA-256 digests.
    ``cached_files`` and ``cached_bytes`` are what the download cache holds, whether this build needs it or not.
    """

    image: str
    recipe: str
    system: str
    inputs_digest: str
    up_to_date: str
    mirrors: tuple[str, ...]
    packages: tuple[str, ...]
    users: tuple[str, ...]
    files: dict[str, str]
    hooks: dict[str, str]
    services: tuple[str, ...]
    disk_bytes: int
    work_seed_bytes: int
    cached_files: int
    cached_bytes: int
    stages: tuple[PlannedStage, ...]


What = Literal["added", "removed", "changed"]


@dataclass(frozen=True, slots=True)
class Difference:
    """A package or a file that one image has otherwise than another: ``before`` is empty for what was added, ``after`` for what was removed.

    Of a package these are versions, of a file what differs of it (``0644 root:root 12 B sha256:…``).
    """

    what: What
    name: str
    before: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class ImageDiff:
    """How image ``after`` differs from image ``before`` (names), each list by name."""

    before: str
    after: str
    packages: tuple[Difference, ...]
    files: tuple[Difference, ...]
