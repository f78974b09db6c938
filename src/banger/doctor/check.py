"""What a check is, and how it may be answered."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from banger.host.config import Config
from banger.host.probe import Answer


@dataclass(frozen=True, slots=True)
class Skip:
    """The question does not arise here, and why."""

    why: str


@dataclass(frozen=True, slots=True)
class Check:
    """One question. ``without`` is what is lost when the answer is no; ``needed``: without it no VM can be had.

    ``source`` says where the advice is from. ``fix`` mends it where that can harm nothing, and says in words what it did; it raises OSError or
    BangerError. ``fixed_by_root``: only root can.
    """

    name: str
    ask: Callable[[Config], Answer | Skip]
    without: str
    needed: bool = False
    source: str = ""
    fix: Callable[[Config], str] | None = None
    fixed_by_root: bool = False
