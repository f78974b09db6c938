"""/v1/events: all that happens, as it happens."""

from __future__ import annotations

from collections.abc import AsyncIterator

import msgspec
from litestar import get
from litestar.di import NamedDependency
from litestar.response import ServerSentEvent, ServerSentEventMessage

from banger.api import schema
from banger.daemon.service import Service
from banger.engine import views
from banger.engine.events import Happening, Hub, OperationChange, Residue
from banger.model import clock


@get(
    "/v1/events",
    summary="Follow everything",
    operation_id="events",
    tags=("daemon",),
    media_type="text/event-stream",
)
async def events(service: NamedDependency[Service]) -> ServerSentEvent:
    """Server-sent events without end: ``operation`` with an OperationEvent, ``vm`` with a VmEvent, ``residue`` with a ResidueEvent. It begins with ``hello``:
    nothing that happens after that is missed, unless the reader falls a thousand events behind.
    """
    return ServerSentEvent(_messages(service.context.board.hub))


async def _messages(hub: Hub) -> AsyncIterator[ServerSentEventMessage]:
    with hub.watch() as queue:
        yield ServerSentEventMessage(event="hello", data="{}")
        while True:
            yield message(await queue.get())


def message(happening: Happening) -> ServerSentEventMessage:
    """As it is sent."""
    if isinstance(happening, OperationChange):
        stage = views.stage(happening.stage) if happening.stage else None
        body: schema.OperationEvent | schema.VmEvent = schema.OperationEvent(
            stage, views.operation(happening.operation)
        )
        return ServerSentEventMessage(event="operation", data=msgspec.json.encode(body).decode())
    if isinstance(happening, Residue):
        found = schema.ResidueEvent(clock.now(), views.residue(happening.finding))
        return ServerSentEventMessage(event="residue", data=msgspec.json.encode(found).decode())
    state = None if happening.state is None else happening.state.value
    body = schema.VmEvent(clock.now(), happening.id, happening.name, state, happening.trouble)
    return ServerSentEventMessage(event="vm", data=msgspec.json.encode(body).decode())
