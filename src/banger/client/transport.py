"""HTTP over the daemon's Unix socket: one connection a request, errors as BangerError.

The CLI imports this on every start, so msgspec, the API's structs and http.client (whose mail parser takes longer than all of
``vm list``) are left to those who need them: `Transport.call` exchanges one JSON document by HTTP/1.0, which needs no parser to
speak of; streams go through `banger.client.http_stream`.
"""

from __future__ import annotations

import errno
import json
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from banger.api.routes import Route
from banger.model.errors import BangerError, DaemonUnreachableError, from_code

TIMEOUT_S: Final = 60.0
MAX_ANSWER_BYTES: Final = 64 << 20
VERSION_HEADER: Final = "banger-version"
WARNINGS_HEADER: Final = "banger-warnings"
Query = Mapping[str, str | int]
_ABSENT: Final = frozenset({errno.ENOENT, errno.ECONNREFUSED})


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
        return BangerError(
            f"the daemon answered with status {status}", detail=shown, hint="banger daemon logs"
        )


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
        self.shows_warnings = False
        self.warnings: list[str] = []

    def close(self) -> None:
        """Let go of the connection that was never used."""
        if self._connected is not None:
            self._connected.close()
            self._connected = None

    def connect(self, timeout_s: float | None) -> socket.socket:
        """A connection of the caller's; DaemonUnreachableError."""
        connected, self._connected = self._connected, None
        try:
            connection = connected or open_socket(self.path)
        except OSError as error:
            raise unreachable(self.path, error) from error
        connection.settimeout(timeout_s)
        return connection

    def call(
        self,
        route: Route,
        values: Mapping[str, str] | None = None,
        *,
        body: bytes | None = None,
        query: Query | None = None,
        timeout_s: float | None = None,
    ) -> bytes:
        """Send a request; the whole body of the answer. An error status is raised."""
        request = [
            f"{route.method} {target(route, query, values or {})} HTTP/1.0",
            "Host: localhost",
        ]
        if self.shows_warnings:
            request += [f"{WARNINGS_HEADER}: yes"]
        if body is not None:
            request += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        with self.connect(timeout_s or self.timeout_s) as connection:
            try:
                connection.sendall("\r\n".join([*request, "\r\n"]).encode("ascii") + (body or b""))
                status, headers, content = parse_answer(_read_all(connection))
            except (OSError, ValueError) as error:
                raise unreachable(self.path, error) from error
        self.note(headers)
        if status >= 400:
            raise error_from(status, content)
        return content

    def note(self, headers: Mapping[str, str]) -> None:
        """Keep what an answer says beside its body: the daemon's version, and warnings for its user."""
        self.daemon_version = headers.get(VERSION_HEADER, self.daemon_version)
        warnings = headers.get(WARNINGS_HEADER)
        if warnings:
            from urllib.parse import unquote  # noqa: PLC0415  most answers have none

            self.warnings += unquote(warnings).splitlines()

    def fetch(
        self, route: Route, values: Mapping[str, str] | None = None, *, query: Query | None = None
    ) -> Any:  # noqa: ANN401  JSON
        """The answer of a route as plain values, with every field that this daemon has."""
        data = self.call(route, values, query=query)
        try:
            return json.loads(data)
        except ValueError as error:
            raise BangerError(
                "the daemon's answer is not JSON", detail=str(error), hint="banger daemon status"
            ) from error


def target(route: Route, query: Query | None, values: Mapping[str, str]) -> str:
    """The request target of ``route``."""
    url = route.url(**values)
    if not query:
        return url
    from urllib.parse import urlencode  # noqa: PLC0415  `vm list` needs none

    return f"{url}?{urlencode(query)}"


def _read_all(connection: socket.socket) -> bytes:
    """Everything until the daemon closes; ValueError beyond the limit."""
    collected = bytearray()
    while piece := connection.recv(1 << 16):
        collected += piece
        if len(collected) > MAX_ANSWER_BYTES:
            raise ValueError(f"the answer is longer than {MAX_ANSWER_BYTES} bytes")
    return bytes(collected)


def parse_answer(data: bytes) -> tuple[int, dict[str, str], bytes]:
    """Status, headers (names in lower case) and body of a closed HTTP answer; ValueError for anything else."""
    head, end, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode("latin-1").split("\r\n")
    words = first.split(" ", 2)
    if not end or len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
        raise ValueError("the answer is cut or not HTTP")
    headers = {
        name.strip().lower(): value.strip() for name, _, value in (s.partition(":") for s in lines)
    }
    length = headers.get("content-length", str(len(body)))
    if length != str(len(body)):
        raise ValueError(f"the answer has {len(body)} bytes of {length}")
    return int(words[1]), headers, body
