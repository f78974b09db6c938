"""Ids and names. An id is 12 lower-case hex digits, never reused; a name is a DNS label, unique while it lives."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence

from banger.model.errors import InvalidInputError

ID_LENGTH = 12
NAME_PATTERN = "[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?"
_NAME = re.compile(NAME_PATTERN, re.ASCII)
_ID = re.compile(rf"[0-9a-f]{{{ID_LENGTH}}}", re.ASCII)
_ADJECTIVES = (
    "amber bold brave bright brisk calm clear clever crisp deft eager early fair fleet fond fresh gentle glad "
    "happy jolly keen kind late light lucky mellow merry mild neat nimble noble plain proud quick quiet rapid "
    "ready rosy sharp shy silent sleek smart snug solid spry steady sunny swift tidy vivid warm wise witty"
).split()
_NOUNS = (
    "acorn badger beaver birch bison brook cedar cloud comet coral crane creek daisy delta dune ember falcon "
    "fern finch fjord fox glade grove harbor hawk hazel heron ibex iris island jay juniper lark leaf lily lynx "
    "maple marten meadow mesa moss oak olive orchid otter owl pearl pine plum pond quail raven reef ridge river "
    "robin sage seal sky slate sparrow spruce stone swan thyme trail tulip vale walnut willow wren"
).split()


def new_id() -> str:
    """A fresh random id: 48 bits, 12 hex digits."""
    return os.urandom(ID_LENGTH // 2).hex()


def is_id(text: str) -> bool:
    """Whether ``text`` has the form of a full id."""
    return _ID.fullmatch(text) is not None


def new_name() -> str:
    """A readable random name such as ``brisk-otter``; the caller checks that it is free."""
    first, second = os.urandom(2), os.urandom(2)
    return f"{_one_of(_ADJECTIVES, first)}-{_one_of(_NOUNS, second)}"


def _one_of(words: Sequence[str], random: bytes) -> str:
    return words[int.from_bytes(random) % len(words)]


def check_name(name: str, *, what: str = "VM") -> str:
    """``name`` if it may name a ``what``; else InvalidInputError that says the rule.

    A name is an RFC 1123 host label: 1 to 63 of a-z, 0-9 and ``-``, not at either end. A name that could be
    read as a full id is refused, so that a reference never has two meanings.
    """
    if _NAME.fullmatch(name) is None:
        shown = name if len(name) <= 40 else name[:37] + "..."
        raise InvalidInputError(
            f"{what} name {shown!r} is not allowed",
            detail="a name has 1 to 63 characters of a-z, 0-9 and '-', and begins and ends with a letter or digit",
            hint=f"choose a name such as {new_name()}",
        )
    if is_id(name):
        raise InvalidInputError(
            f"{what} name {name!r} looks like an id", hint=f"choose a name such as {new_name()}"
        )
    return name
