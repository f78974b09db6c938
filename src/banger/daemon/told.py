"""What every answer says beside its body: the daemon's version, and warnings that its user has not seen yet.

A client that shows warnings to a person sends ``banger-warnings: yes``; each warning is told to one such request, and stays in /v1/info.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Final
from urllib.parse import quote

from litestar.datastructures import Headers, MutableScopeHeaders
from litestar.types import Message, Scope

from banger.daemon.service import Service

VERSION: Final = "banger-version"
WARNINGS: Final = "banger-warnings"


def telling(service: Service) -> Callable[[Message, Scope], Awaitable[None]]:
    """A hook that puts both into the head of an answer."""
    untold = list(service.warnings)

    async def tell(message: Message, scope: Scope) -> None:
        if message["type"] != "http.response.start":
            return
        headers = MutableScopeHeaders.from_message(message)
        headers[VERSION] = service.version
        if untold and Headers.from_scope(scope).get(WARNINGS) == "yes":
            headers[WARNINGS] = quote("\n".join(untold))
            untold.clear()

    return tell
