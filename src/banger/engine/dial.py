"""A connection to a TCP port of a guest: through the network's namespace where there is a route, else through the agent."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from banger.engine.context import Context
from banger.engine.guest_ports import Stream
from banger.engine.machine import Machine
from banger.model.spec import ForwardProtocol
from banger.model.state import not_running

CHUNK_BYTES = 64 * 1024


def on_own_network(mode: str) -> bool:
    """Whether a VM whose network is ``mode`` (`RunRecord.network`) hangs on banger's own: the daemon has a way in, and a filter."""
    return mode in {"user", "bridge"}


async def dial(
    context: Context,
    machine: Machine,
    port: int,
    *,
    protocol: ForwardProtocol = ForwardProtocol.TCP,
) -> socket.socket:
    """A connected non-blocking socket to ``port`` of the guest; OSError or BangerError if nobody answers there."""
    run = machine.record.run
    if run is None or machine.guest is None:
        raise not_running(machine.name, machine.state)
    if on_own_network(run.network) and machine.lease is not None:
        return await context.network.dial(machine.lease, port, protocol=protocol)
    if protocol is ForwardProtocol.UDP:
        raise ConnectionRefusedError("the agent carries no UDP")
    return _as_socket(await machine.guest.proxy(port))


_pumps: set[asyncio.Task[None]] = set()


def _as_socket(stream: Stream) -> socket.socket:
    ours, theirs = socket.socketpair()
    for end in (ours, theirs):
        end.setblocking(False)  # noqa: FBT003  the standard library's signature
    task = asyncio.create_task(_pump(stream, ours))
    _pumps.add(task)
    task.add_done_callback(_pumps.discard)
    return theirs


async def _pump(stream: Stream, ours: socket.socket) -> None:
    """Carry bytes both ways until either side ends (the agent's streams have no half-close)."""
    loop = asyncio.get_running_loop()

    async def outward() -> None:
        while data := await loop.sock_recv(ours, CHUNK_BYTES):
            await stream.write(data)

    async def inward() -> None:
        while data := await stream.read(CHUNK_BYTES):
            await loop.sock_sendall(ours, data)

    tasks = {asyncio.create_task(outward()), asyncio.create_task(inward())}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        with suppress(OSError):
            await asyncio.gather(*tasks, return_exceptions=True)
        ours.close()
        await stream.close()
