"""Everything that happens, as the daemon tells it: ``GET /v1/events``."""

from __future__ import annotations

import http.client
from collections.abc import Iterator

import msgspec

from banger.api import routes
from banger.api.schema import OperationEvent, ResidueEvent, VmEvent
from banger.client.follow import named_events
from banger.client.http_stream import LOST, UnixConnection, open_stream
from banger.client.transport import Transport
from banger.model.errors import DaemonUnreachableError

Happened = OperationEvent | VmEvent | ResidueEvent
_KINDS: dict[bytes, type[Happened]] = {
    b"operation": OperationEvent,
    b"vm": VmEvent,
    b"residue": ResidueEvent,
}


def happenings(transport: Transport) -> Iterator[Happened]:
    """All that happens from when this returns; events of kinds that a newer daemon has are left out. DaemonUnreachableError when the daemon ends."""
    connection, response = open_stream(transport, routes.EVENTS, {}, timeout_s=None)
    arriving = named_events(response)
    try:
        hello = next(arriving, None)  # from here on nothing is missed
    except LOST:
        hello = None
    if hello is None:
        _close(connection, response)
        raise _ended()
    return _rest(connection, response, arriving)


def _rest(
    connection: UnixConnection,
    response: http.client.HTTPResponse,
    arriving: Iterator[tuple[bytes, bytes]],
) -> Iterator[Happened]:
    try:
        for name, body in arriving:
            if name in _KINDS:
                yield msgspec.json.decode(body, type=_KINDS[name])
    except LOST as error:
        raise _ended() from error
    finally:
        _close(connection, response)
    raise _ended()


def _close(connection: UnixConnection, response: http.client.HTTPResponse) -> None:
    response.close()
    connection.close()


def _ended() -> DaemonUnreachableError:
    return DaemonUnreachableError("the daemon has ended", hint="banger events -f")
