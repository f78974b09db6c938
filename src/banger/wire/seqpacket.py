"""Messages over a SEQPACKET Unix socket, with descriptors (SCM_RIGHTS): how holder and helper are spoken to."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

MAX_DESCRIPTORS = 4
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Message:
    """One message: its bytes, empty at the end; its descriptors, close-on-exec and the receiver's; whether any part of it was cut off."""

    data: bytes
    descriptors: tuple[int, ...] = ()
    cut: bool = False


def receive(channel: socket.socket, limit_bytes: int) -> Message:
    """The message that is there, up to ``limit_bytes`` of it; BlockingIOError if there is none."""
    room = socket.CMSG_SPACE(MAX_DESCRIPTORS * 4)
    data, ancillary, flags, _ = channel.recvmsg(
        limit_bytes, room, socket.MSG_CMSG_CLOEXEC | socket.MSG_DONTWAIT
    )
    found: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            whole = len(payload) // 4 * 4
            found += memoryview(payload[:whole]).cast("i").tolist()
    return Message(data, tuple(found), bool(flags & (socket.MSG_TRUNC | socket.MSG_CTRUNC)))


async def when_ready(channel: socket.socket, attempt: Callable[[], _T]) -> _T:
    """The result of ``attempt``, tried again whenever ``channel`` is readable."""
    loop = asyncio.get_running_loop()
    while True:
        try:
            return attempt()
        except BlockingIOError:
            pass
        ready: asyncio.Future[None] = loop.create_future()
        loop.add_reader(channel, _wake, ready)
        try:
            await ready
        finally:
            loop.remove_reader(channel)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
