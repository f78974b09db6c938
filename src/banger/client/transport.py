"""HTTP/1.1 over the daemon's Unix socket: one connection a request, errors as BangerError.

The CLI imports this on every start: msgspec and the API's structs are left to those who need them.
"""

from __future__ import annotations

import errno
import http.client
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlencode

from typing_extensions import override

from banger.api.routes import Route
from banger.model.errors import BangerError, DaemonUnreachableError, from_code

TIMEOUT_S: Final = 60.0
MAX_ERROR_BYTES: Final = 1 << 20
Query = Mapping[str, str | int]
_ABSENT: Final = frozenset({errno.ENOENT, errno.ECONNREFUSED})


class UnixConnection(http.client.HTTPConnection):
    """An HTTPConnection whose other end is the socket at ``path``."""

    def __init__(
        self, path: Path, timeout_s: float | None, connected: socket.socket | None
    ) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path
        self._connected = connected

    @override
    def connect(self) -> None:
        """Use the socket that is connected already, or connect one."""
        self.sock = self._connected or open_socket(self._path)
        self._connected = None
        self.sock.settimeout(self.timeout)


def open_socket(path: Path) -> socket.socket:
    """A stream connected to ``path``; OSError."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(10)  # the backlog of a stopped daemon is full at some time
        connection.connect(str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def is_absent(error: OSError) -> bool:
    """Whether ``error`` from a connect means that no daemon listens there."""
    return error.errno in _ABSENT


def unreachable(path: Path, error: BaseException) -> DaemonUnreachableError:
    """The error for a daemon that could not be talked to."""
    if isinstance(error, TimeoutError):
        return DaemonUnreachableError(
            "the daemon did not answer in time", detail=f"socket: {path}", hint="banger daemon logs"
        )
    if isinstance(error, PermissionError):
        return DaemonUnreachableError(
            f"{path} belongs to another user", hint="set BANGER_RUNTIME_DIR to a directory of yours"
        )
    if isinstance(error, OSError) and is_absent(error):
        return DaemonUnreachableError(
            "the daemon is not running", detail=f"socket: {path}", hint="banger daemon start"
        )
    return DaemonUnreachableError(
        "the daemon broke the connection",
        detail=f"{type(error).__name__}: {error}\nsocket: {path}",
        hint="banger daemon logs",
    )


def error_from(status: int, body: bytes) -> BangerError:
    """The error that an answer with ``status`` of 400 or more carries."""
    try:
        problem = json.loads(body)
        return from_code(
            str(problem["code"]),
            str(problem["what"]),
            detail=str(problem.get("detail") or ""),
            hint=str(problem.get("hint") or ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        shown = body[:500].decode(errors="replace")
        return BangerError(f"the daemon answered with status {status}", detail=shown)


class Transport:
    """Requests to the daemon at ``path``. ``connected`` is a first connection that is open already."""

    def __init__(
        self,
        path: Path,
        *,
        timeout_s: float = TIMEOUT_S,
        connected: socket.socket | None = None,
    ) -> None:
        self.path = path
        self.timeout_s = timeout_s
        self._connected = connected
        self.daemon_version: str | None = None

    def close(self) -> None:
        """Let go of the connection that was never used."""
        if self._connected is not None:
            self._connected.close()
            self._connected = None

    def connection(self, timeout_s: float | None) -> UnixConnection:
        """A fresh connection, not yet opened."""
        connected, self._connected = self._connected, None
        return UnixConnection(self.path, timeout_s, connected)

    def open(
        self,
        route: Route,
        values: Mapping[str, str] | None = None,
        *,
        body: bytes | None = None,
        query: Query | None = None,
        timeout_s: float | None = TIMEOUT_S,
    ) -> tuple[UnixConnection, http.client.HTTPResponse]:
        """Send a request; the open answer, whose connection the caller closes. An error status is raised."""
        connection = self.connection(timeout_s)
        try:
            headers = {"Content-Type": "application/json"} if body is not None else {}
            connection.request(route.method, target(route, query, values or {}), body, headers)
            response = self.answer(connection)
        except (OSError, http.client.HTTPException) as error:
            connection.close()
            raise unreachable(self.path, error) from error
        except BaseException:
            connection.close()
            raise
        return connection, response

    def answer(self, connection: UnixConnection) -> http.client.HTTPResponse:
        """The answer to what was sent on ``connection``; an error status is raised."""
        response = connection.getresponse()
        self.daemon_version = response.headers.get("Banger-Version", self.daemon_version)
        if response.status >= 400:
            raise error_from(response.status, response.read(MAX_ERROR_BYTES))
        return response

    def call(
        self,
        route: Route,
        values: Mapping[str, str] | None = None,
        *,
        body: bytes | None = None,
        query: Query | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Send a request; the whole body of the answer."""
        connection, response = self.open(
            route, values, body=body, query=query, timeout_s=timeout_s or self.timeout_s
        )
        try:
            return response.read()
        except (OSError, http.client.HTTPException) as error:
            raise unreachable(self.path, error) from error
        finally:
            connection.close()

    def fetch(
        self, route: Route, values: Mapping[str, str] | None = None, *, query: Query | None = None
    ) -> Any:  # noqa: ANN401  JSON
        """The answer of a route as plain values, with every field that this daemon has."""
        data = self.call(route, values, query=query)
        try:
            return json.loads(data)
        except ValueError as error:
            raise BangerError("the daemon's answer is not JSON", detail=str(error)) from error


def target(route: Route, query: Query | None, values: Mapping[str, str]) -> str:
    """The request target of ``route``."""
    url = route.url(**values)
    return f"{url}?{urlencode(query)}" if query else url
