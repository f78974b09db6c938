"""Bytes in and out of a guest: exec and proxy over WebSocket, files as tar, logs as text.

On a WebSocket an error before the first frame is one text message, an `api.schema.Error`, and then the close.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Coroutine
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
from litestar import MediaType, Request, WebSocket, get, put, websocket
from litestar.di import NamedDependency
from litestar.exceptions import WebSocketDisconnect
from litestar.params import FromPath, FromQuery, Parameter
from litestar.response import Stream

from banger.api import schema
from banger.api.frames import MAX_PAYLOAD, FrameType
from banger.daemon.problems import problems
from banger.daemon.service import Service, describe
from banger.engine.ports import ExecSession
from banger.engine.ports import Stream as GuestStream
from banger.host import fs
from banger.model.errors import BangerError, InvalidInputError

log = logging.getLogger(__name__)
GuestPath = Annotated[
    str, Parameter(min_length=1, max_length=4096, description="absolute path in the guest")
]
Ref = Annotated[str, Parameter(description="name, id or unique id prefix", max_length=200)]
Socket = WebSocket[Any, Any, Any]
_Work = Coroutine[object, object, None]
FOLLOW_POLL_S = 0.2


async def _refuse(socket: Socket, error: BaseException) -> None:
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
    except (BangerError, msgspec.MsgspecError) as error:
        await _refuse(
            socket,
            InvalidInputError(str(error)) if isinstance(error, msgspec.MsgspecError) else error,
        )
        return
    await _both_ways(socket, _frames_in(socket, session), _frames_out(socket, session), session)


async def _frames_in(socket: Socket, session: ExecSession) -> None:
    while True:
        message = await socket.receive_bytes()
        if not 1 <= len(message) <= MAX_PAYLOAD + 1:
            raise InvalidInputError("a frame has 1 byte of type and at most 64 KiB of payload")
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
        await _refuse(socket, error)
        return
    await _both_ways(socket, _bytes_in(socket, stream), _bytes_out(socket, stream), stream)


async def _bytes_in(socket: Socket, stream: GuestStream) -> None:
    while True:
        await stream.write(await socket.receive_bytes())


async def _bytes_out(socket: Socket, stream: GuestStream) -> None:
    while data := await stream.read():
        await socket.send_bytes(data)


async def _both_ways(
    socket: Socket, inward: _Work, outward: _Work, end: ExecSession | GuestStream
) -> None:
    tasks = {asyncio.create_task(inward), asyncio.create_task(outward)}
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            error = task.exception()
            if error is not None and not isinstance(
                error, WebSocketDisconnect | BangerError | OSError
            ):
                log.error("stream to a guest failed", exc_info=error)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await end.close()
        if socket.connection_state != "disconnect":
            await socket.close()


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


@get(
    "/v1/vms/{ref:str}/logs",
    summary="Logs of a VM",
    operation_id="vmLogs",
    media_type=MediaType.TEXT,
    responses=problems(400, 404),
    tags=("vms",),
)
async def logs(
    service: NamedDependency[Service],
    ref: Ref,
    source: FromQuery[Literal["console", "vmm"]] = "console",
    tail_bytes: Annotated[int, Parameter(ge=0, le=16 << 20)] = 64 << 10,
    follow: FromQuery[bool] = False,  # noqa: FBT002  a query parameter
) -> Stream:
    """The end of the serial console or of the VMM's own log; with ``follow`` also what comes after, until the VM is gone."""
    machine = service.engine.resolve(ref)
    path = machine.paths.console_log if source == "console" else machine.paths.vmm_log

    async def body() -> AsyncIterator[bytes]:
        yield await asyncio.to_thread(fs.read_tail, path, tail_bytes)
        if follow:
            async for chunk in _appended(path):
                yield chunk

    return Stream(body(), media_type="text/plain; charset=utf-8")


async def _appended(path: Path) -> AsyncIterator[bytes]:
    """What is appended to ``path`` from now on, until its directory is gone."""
    position = _size(path)
    while _exists(path.parent):
        chunk, position = _read_from(path, position)
        if chunk:
            yield chunk
        else:
            await asyncio.sleep(FOLLOW_POLL_S)


def _exists(path: Path) -> bool:
    return path.exists()


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _read_from(path: Path, position: int) -> tuple[bytes, int]:
    """Up to 1 MiB of ``path`` from ``position`` on, and the next position; a file that shrank (capped) is read from its start."""
    size = _size(path)
    if size < position:
        position = 0
    if size == position:
        return b"", position
    with path.open("rb") as file:
        file.seek(position)
        chunk = file.read(1 << 20)
    return chunk, position + len(chunk)


HANDLERS = (exec_command, proxy, get_files, put_files, logs)
