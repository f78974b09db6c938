"""What newer Pythons have."""

from __future__ import annotations

from typing import TYPE_CHECKING, TypeVar

_T = TypeVar("_T")

if TYPE_CHECKING:
    from typing_extensions import override
else:

    def override(method: _T) -> _T:
        """As `typing.override` of Python 3.12; importing typing_extensions would be a twentieth of a command's start."""
        return method


__all__ = ["override"]
