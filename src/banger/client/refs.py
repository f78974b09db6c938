"""References as users type them, checked before they become part of a URL."""

from __future__ import annotations

import re

from banger.model.errors import InvalidInputError

_REF = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?", re.ASCII)
_COMMANDS = {"VM": "banger vm list", "image": "banger image list", "operation": "banger op list"}


def check_ref(ref: str, *, what: str = "VM") -> str:
    """``ref`` if it has the form of a name, an id or a prefix of one; InvalidInputError else."""
    if _REF.fullmatch(ref) is None:
        shown = ref if len(ref) <= 40 else ref[:37] + "..."
        raise InvalidInputError(
            f"{shown!r} is neither the name nor the id of a {what}",
            detail="names are made of a-z, 0-9 and '-'",
            hint=_COMMANDS[what],
        )
    return ref
