"""Follow an operation through its server-sent events; where the stream is cut, ask for the operation and go on."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from banger.api import routes, schema
from banger.api.malformed import NOT_JSON
from banger.client.transport import Transport
from banger.model.clock import Deadline
from banger.model.errors import (
    BangerError,
    CancelledOperationError,
    DaemonUnreachableError,
    GuestNotReadyError,
    from_code,
)

if TYPE_CHECKING:
    import http.client

FINAL = frozenset({"succeeded", "failed", "cancelled"})
QUIET_S = 30.0
"""So long may a stream be silent before the operation is asked for."""
AWAY_S = 20.0
"""So long may the daemon be away (it restarts) before following gives up."""
AGAIN_S = 0.2
MAX_EVENT_BYTES = 8 << 20


def follow(
    transport: Transport, operation: schema.Operation, *, timeout_s: float | None = None
) -> Iterator[schema.Operation]:
    """``operation`` and each of its later forms; the last one is final.

    Raises GuestNotReadyError if it is not over after ``timeout_s`` (it goes on), DaemonUnreachableError if the daemon
    stays away.
    """
    deadline = Deadline.after(timeout_s) if timeout_s is not None else None
    present = operation
    yield present
    while present.state not in FINAL:
        for later in _stream(transport, present.id, deadline):
            present = later
            yield present
        if present.state in FINAL:
            return
        _check(present, deadline)
        present = _ask(transport, present.id)
        yield present
        if present.state not in FINAL:
            time.sleep(AGAIN_S)  # the stream ended early: do not ask at full speed


def outcome(operation: schema.Operation) -> schema.Operation:
    """A final ``operation`` that succeeded; its error is raised if it did not."""
    if operation.state == "succeeded":
        return operation
    error = operation.error
    if error is not None:
        raise from_code(error.code, error.what, detail=error.detail, hint=error.hint)
    if operation.state == "cancelled":
        raise CancelledOperationError(f"{operation.kind} of {operation.target_name} was cancelled")
    raise BangerError(
        f"{operation.kind} of {operation.target_name} failed",
        hint=f"banger op show {operation.id}",
    )


def _check(operation: schema.Operation, deadline: Deadline | None) -> None:
    if deadline is not None and deadline.passed:
        raise GuestNotReadyError(
            f"operation {operation.id} ({operation.kind}) goes on after the time given",
            hint=f"banger op wait {operation.id}",
        )


def _ask(transport: Transport, operation_id: str) -> schema.Operation:
    away = Deadline.after(AWAY_S)
    while True:
        try:
            data = transport.call(routes.OPERATION_SHOW, {"id": operation_id})
            return msgspec.json.decode(data, type=schema.Operation)
        except DaemonUnreachableError:
            if away.passed:
                raise
            time.sleep(AGAIN_S)


def _stream(
    transport: Transport, operation_id: str, deadline: Deadline | None
) -> Iterator[schema.Operation]:
    """Operations from the event stream until it ends, is cut or is silent for too long."""
    # Loaded while the daemon is at work already.
    from banger.client.http_stream import LOST, open_stream  # noqa: PLC0415

    try:
        connection, response = open_stream(
            transport, routes.OPERATION_EVENTS, {"id": operation_id}, timeout_s=_silence(deadline)
        )
    except DaemonUnreachableError:
        return
    try:
        for data in events(response):
            yield msgspec.json.decode(data, type=schema.OperationEvent).operation
            if connection.sock is not None:
                connection.sock.settimeout(_silence(deadline))
    except (*LOST, *NOT_JSON):
        return  # whatever it was, the operation itself is asked for next
    finally:
        response.close()
        connection.close()


def _silence(deadline: Deadline | None) -> float:
    return QUIET_S if deadline is None else max(0.01, min(QUIET_S, deadline.remaining_s))


def events(lines: http.client.HTTPResponse) -> Iterator[bytes]:
    """The data of each server-sent event named ``operation``, or not at all."""
    for name, data in named_events(lines):
        if name in {b"", b"operation"}:
            yield data


def named_events(lines: http.client.HTTPResponse) -> Iterator[tuple[bytes, bytes]]:
    """Name and data of each server-sent event; several data lines are joined as the standard says."""
    data: list[bytes] = []
    name = b""
    while line := lines.readline(MAX_EVENT_BYTES):
        line = line.rstrip(b"\r\n")
        if not line:
            if data:
                yield name, b"\n".join(data)
            data, name = [], b""
            continue
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            data.append(value)
        elif field == b"event":
            name = value
