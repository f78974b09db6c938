"""How an error about one place of a recipe is made."""

from __future__ import annotations

from typing import Protocol

from banger.model.errors import InvalidInputError


class Fail(Protocol):
    """Makes an error about a table, or about a key of it."""

    def __call__(
        self, what: str, *keys: str, detail: str = "", hint: str = ""
    ) -> InvalidInputError:
        """The error, to be raised."""
        ...
