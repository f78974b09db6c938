"""What a VM wrote: its serial console and its VMM's own words, once or as they come."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Literal

from litestar import MediaType, get, websocket
from litestar.di import NamedDependency
from litestar.params import FromPath, FromQuery, Parameter
from litestar.response import Stream

from banger.api.frames import MAX_PAYLOAD
from banger.daemon.handlers.streams import Ref, Socket, both_ways, refuse
from banger.daemon.problems import problems
from banger.daemon.service import Service
from banger.host import fs
from banger.model.errors import BangerError, InvalidInputError

FOLLOW_POLL_S = 0.2


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

    body = _log(path, tail_bytes, follow=follow)
    return Stream(body, media_type="text/plain; charset=utf-8")


@websocket("/v1/vms/{ref:str}/console")
async def console(
    socket: Socket,
    service: NamedDependency[Service],
    ref: FromPath[str],
    tail_bytes: Annotated[int, Parameter(ge=0, le=16 << 20)] = 64 << 10,
) -> None:
    """The serial console as it is written: binary messages from ``tail_bytes`` before its end on, until the VM is gone. It takes no input."""
    await socket.accept()
    try:
        path = service.engine.resolve(ref).paths.console_log
    except BangerError as error:
        await refuse(socket, error)
        return
    await both_ways(socket, _no_input(socket, ref), _console_out(socket, path, tail_bytes))


async def _no_input(socket: Socket, ref: str) -> None:
    await socket.receive_data(mode="binary")
    raise InvalidInputError(
        "the console takes no input: it is the guest's serial output",
        hint=f"banger vm exec -t {ref} -- bash",
    )


async def _console_out(socket: Socket, path: Path, tail_bytes: int) -> None:
    async for chunk in _log(path, tail_bytes, follow=True):
        for at in range(0, len(chunk), MAX_PAYLOAD):
            await socket.send_bytes(chunk[at : at + MAX_PAYLOAD])


async def _log(path: Path, tail_bytes: int, *, follow: bool) -> AsyncIterator[bytes]:
    if not follow:
        yield await asyncio.to_thread(fs.read_tail, path, tail_bytes)
        return
    async for chunk in _followed(path, max(_size(path) - tail_bytes, 0)):
        yield chunk


async def _followed(path: Path, position: int) -> AsyncIterator[bytes]:
    """What ``path`` has from ``position`` on, and what is appended, until its directory is gone."""
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


HANDLERS = (logs, console)
