"""Answers and requests that are streams: http.client over the daemon's Unix socket."""

from __future__ import annotations

import http.client
from collections.abc import Mapping

from banger.api.routes import Route
from banger.client.transport import (
    Query,
    Transport,
    error_from,
    target,
    unreachable,
)
from banger.model.compat import override

MAX_ERROR_BYTES = 1 << 20
LOST = (OSError, http.client.HTTPException)
"""What reading from or writing to a connection may raise when the daemon goes away."""


class UnixConnection(http.client.HTTPConnection):
    """An HTTPConnection to the daemon of ``transport``; reads and writes may stand still for ``timeout_s``."""

    def __init__(self, transport: Transport, timeout_s: float | None) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._transport = transport
        self._timeout_s = timeout_s

    @override
    def connect(self) -> None:
        """Take a connection from the transport."""
        self.sock = self._transport.connect(self._timeout_s)

    def answer(self) -> http.client.HTTPResponse:
        """The answer to what was sent; an error status is raised."""
        response = self.getresponse()
        self._transport.note({key.lower(): value for key, value in response.headers.items()})
        if response.status >= 400:
            raise error_from(response.status, response.read(MAX_ERROR_BYTES))
        return response


def open_stream(
    transport: Transport,
    route: Route,
    values: Mapping[str, str],
    *,
    query: Query | None = None,
    timeout_s: float | None,
) -> tuple[UnixConnection, http.client.HTTPResponse]:
    """Send a request; the open answer and its connection, both closed by the caller. An error status is raised."""
    connection = UnixConnection(transport, timeout_s)
    try:
        connection.request(route.method, target(route, query, values))
        return connection, connection.answer()
    except LOST as error:
        connection.close()
        raise unreachable(transport.path, error) from error
    except BaseException:
        connection.close()
        raise
