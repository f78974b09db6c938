"""/v1/operations: what the daemon does and did."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Annotated

from litestar import Controller, delete, get
from litestar.di import NamedDependency
from litestar.params import Parameter
from litestar.response import ServerSentEvent, ServerSentEventMessage

from banger.api import schema
from banger.daemon.handlers.events import message
from banger.daemon.problems import problems
from banger.daemon.service import Service
from banger.engine import views
from banger.engine.events import OperationChange
from banger.engine.operations import Event
from banger.model.errors import RefusedError

OperationId = Annotated[str, Parameter(description="id or unique id prefix", max_length=200)]
Limit = Annotated[int, Parameter(ge=1, le=1000, description="at most so many")]


class OperationController(Controller):
    """Operations, live and past."""

    path = "/v1/operations"
    tags: Sequence[str] | None = ["operations"]

    @get("/", summary="List operations", operation_id="operationList", responses=problems(400))
    async def list_operations(
        self, service: NamedDependency[Service], limit: Limit = 100
    ) -> list[schema.Operation]:
        """The newest operations, newest first."""
        return [views.operation(record) for record in service.context.board.newest(limit)]

    @get(
        "/{id:str}",
        summary="Show an operation",
        operation_id="operationShow",
        responses=problems(400, 404),
    )
    async def show(self, service: NamedDependency[Service], id: OperationId) -> schema.Operation:  # noqa: A002  the path's own name
        """One operation with its stages."""
        return views.operation(service.context.board.get(id))

    @get(
        "/{id:str}/events",
        summary="Follow an operation",
        operation_id="operationEvents",
        responses=problems(400, 404),
        media_type="text/event-stream",
    )
    async def events(self, service: NamedDependency[Service], id: OperationId) -> ServerSentEvent:  # noqa: A002  as above
        """Server-sent events named ``operation``: each an OperationEvent; the stream ends with the operation."""
        record = service.context.board.get(id)
        run = service.context.board.live(record.id)
        return ServerSentEvent(_messages(run.watch() if run else _past((None, record))))

    @delete(
        "/{id:str}",
        status_code=202,
        summary="Cancel an operation",
        operation_id="operationCancel",
        responses=problems(400, 404, 409),
    )
    async def cancel(self, service: NamedDependency[Service], id: OperationId) -> schema.Operation:  # noqa: A002  as above
        """Ask an operation to end and undo what it made; follow it to see when it has."""
        record = service.context.board.get(id)
        run = service.context.board.live(record.id)
        if run is None or record.state.final:
            raise RefusedError(
                f"operation {record.id} is over: {record.state}", hint=f"banger op show {record.id}"
            )
        run.cancel()
        return views.operation(run.record)


async def _past(event: Event) -> AsyncIterator[Event]:
    yield event


async def _messages(events: AsyncIterator[Event]) -> AsyncIterator[ServerSentEventMessage]:
    async for stage, record in events:
        yield message(OperationChange(stage, record))
