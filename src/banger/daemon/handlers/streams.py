"""Bytes in and out of a guest: exec and proxy over WebSocket, files as tar.

On a WebSocket an error is one text message, an `api.schema.Error`, and then the close.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import suppress
from typing import Annotated, Any

import msgspec
from litestar import Request, WebSocket, get, put, websocket
from litestar.di import NamedDependency
from litestar.exceptions import WebSocketDisconnect
from litestar.params import FromPath, Parameter
from litestar.response import Stream

from banger.api import schema
from banger.api.frames import MAX_PAYLOAD, FrameType
from banger.api.malformed import NOT_JSON
from banger.daemon.problems import problems
from banger.daemon.service import Service, describe
from banger.engine.guest_ports import ExecSession
from banger.engine.guest_ports import Stream as GuestStream
from banger.model.errors import BangerError, InvalidInputError

log = logging.getLogger(__name__)
GuestPath = Annotated[
    str, Parameter(min_length=1, max_length=4096, description="absolute path in the guest")
]
Ref = Annotated[str, Parameter(description="name, id or unique id prefix", max_length=200)]
Socket = WebSocket[Any, Any, Any]
_Work = Coroutine[object, object, None]
LAST_WORDS_S = 2.0


async def refuse(socket: Socket, error: BaseException) -> None:
    """Say why and close."""
    with suppress(WebSocketDisconnect, RuntimeError):  # the client has gone: nobody is to be told
        await socket.send_text(msgspec.json.encode(describe(error)).decode())
        await socket.close(code=1008)


@websocket("/v1/vms/{ref:str}/exec")
async def exec_command(
    socket: Socket, service: NamedDependency[Service], ref: FromPath[str]
) -> None:
    """Run a command in the guest: a text message with an ExecRequest, then frames (`api.frames`) both ways."""
    await socket.accept()
    try:
        text = await socket.receive_text()
        request = msgspec.json.decode(text, type=schema.ExecRequest)
        session = await service.guest(ref).exec(msgspec.to_builtins(request))
    except WebSocketDisconnect:
        return
    except NOT_JSON as error:
        await refuse(
            socket,
            InvalidInputError(
                "the request was not understood",
                detail=str(error),
                hint="see ExecRequest in /openapi.json",
            ),
        )
        return
    except (BangerError, OSError) as error:
        await refuse(socket, error)
        return
    try:
        await both_ways(socket, _frames_in(socket, session), _frames_out(socket, session))
    finally:
        await session.close()


async def _frames_in(socket: Socket, session: ExecSession) -> None:
    while True:
        message = await socket.receive_bytes()
        if not 1 <= len(message) <= MAX_PAYLOAD + 1:
            raise InvalidInputError(
                "a frame has 1 byte of type and at most 64 KiB of payload",
                hint="see GET /openapi.json and docs/explanation/agent.md",
            )
        await session.send(message[0], message[1:])


async def _frames_out(socket: Socket, session: ExecSession) -> None:
    async for kind, payload in session.frames():
        await socket.send_bytes(bytes([kind]) + payload)
        if kind in {FrameType.EXIT, FrameType.FAILED}:
            return


@websocket("/v1/vms/{ref:str}/proxy")
async def proxy(
    socket: Socket,
    service: NamedDependency[Service],
    ref: FromPath[str],
    port: Annotated[int, Parameter(ge=1, le=65535)],
) -> None:
    """A TCP port of the guest: binary messages are the bytes, closing is the end."""
    await socket.accept()
    try:
        stream = await service.guest(ref).proxy(port)
    except (BangerError, OSError) as error:
        await refuse(socket, error)
        return
    try:
        await both_ways(socket, _bytes_in(socket, stream), _bytes_out(socket, stream))
    finally:
        await stream.close()


async def _bytes_in(socket: Socket, stream: GuestStream) -> None:
    while True:
        await stream.write(await socket.receive_bytes())


async def _bytes_out(socket: Socket, stream: GuestStream) -> None:
    while data := await stream.read():
        await socket.send_bytes(data)


async def both_ways(socket: Socket, inward: _Work, outward: _Work) -> None:
    """Do both until one ends, then close; an error of the guest's side is told to the client.

    What comes in fails first when the guest has closed: what it sent before that still goes out.
    """
    inner, outer = asyncio.create_task(inward), asyncio.create_task(outward)
    try:
        await asyncio.wait({inner, outer}, return_when=asyncio.FIRST_COMPLETED)
        if inner.done() and isinstance(inner.exception(), OSError):
            await asyncio.wait({outer}, timeout=LAST_WORDS_S)
        if not outer.done() or outer.exception() is not None:
            await _tell(socket, (outer, inner))
    finally:
        for task in (inner, outer):
            task.cancel()
        await asyncio.gather(inner, outer, return_exceptions=True)
        if socket.connection_state != "disconnect":
            with suppress(WebSocketDisconnect, RuntimeError):  # it is closed already
                await socket.close()


async def _tell(socket: Socket, tasks: Sequence[asyncio.Task[object]]) -> None:
    """Tell the client the error of the first task that has one; one of ours also goes to the log."""
    errors = [task.exception() for task in tasks if task.done()]
    error = next(filter(None, errors), None)
    if error is None or isinstance(error, WebSocketDisconnect):
        return
    if not isinstance(error, BangerError | OSError):
        log.error("stream to a guest failed", exc_info=error)
    await refuse(socket, error)


@get(
    "/v1/vms/{ref:str}/files",
    summary="Read files of a guest",
    operation_id="vmFilesGet",
    media_type="application/x-tar",
    responses=problems(400, 404, 409, 504),
    tags=("vms",),
)
async def get_files(service: NamedDependency[Service], ref: Ref, path: GuestPath) -> Stream:
    """A tar stream of ``path``: its members are named from its last component on."""
    chunks = service.guest(ref).get_files(_absolute(path))
    first = await anext(chunks, b"")  # an error here still gets its status

    async def body() -> AsyncIterator[bytes]:
        yield first
        async for chunk in chunks:
            yield chunk

    return Stream(body(), media_type="application/x-tar")


@put(
    "/v1/vms/{ref:str}/files",
    summary="Write files to a guest",
    operation_id="vmFilesPut",
    status_code=204,
    request_max_body_size=None,
    responses=problems(400, 404, 409, 504),
    tags=("vms",),
)
async def put_files(
    request: Request[Any, Any, Any], service: NamedDependency[Service], ref: Ref, path: GuestPath
) -> None:
    """Unpack the tar stream in the body into the directory ``path``."""
    await service.guest(ref).put_files(_absolute(path), request.stream())


def _absolute(path: str) -> str:
    if not path.startswith("/") or "\0" in path:
        raise InvalidInputError(f"guest path {path!r} is not absolute", hint="begin it with /")
    return path


HANDLERS = (exec_command, proxy, get_files, put_files)
