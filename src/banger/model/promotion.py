"""What a user asks of ``image promote``, and what the engine gives to the work."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from banger.model.ids import check_name


@dataclass(frozen=True, slots=True)
class Promotion:
    """An image called ``name`` out of the disks of a VM at rest.

    ``with_work``: its work disk becomes the image's work seed, else that of the image it was made from is kept. ``clean_history``: the
    histories of shells go too. ``replace`` takes the name from an image that has it.
    """

    name: str
    with_work: bool = False
    clean_history: bool = False
    replace: bool = False

    def __post_init__(self) -> None:
        check_name(self.name, what="image")


@dataclass(frozen=True, slots=True)
class PromotionSource:
    """A VM at rest: the image that it was made from, how its root disk is copied to a new raw file, and its work disk.

    ``needed_bytes`` is what the copy of the root disk may take at once.
    """

    vm_id: str
    vm_name: str
    image_id: str
    work: Path
    copy_root: Callable[[Path], Awaitable[str]]
    needed_bytes: int
