"""The daemon's side of the holder's control socket: one connection a request, each with a deadline."""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from banger.model.errors import BangerError
from banger.wire.seqpacket import receive, when_ready

REQUEST_S = 5.0
_MAX_REPLY_BYTES = 4096


class HolderError(BangerError):
    """The network's holder did not do as asked."""

    next_step = "banger daemon logs"


async def ask(
    path: Path, op: str, *, timeout_s: float = REQUEST_S, expect: int = 0, name: str = ""
) -> tuple[Mapping[str, Any], list[int]]:
    """Send one request to the holder behind ``path``; its reply and exactly ``expect`` descriptors, which are the caller's.

    Raises OSError with the kernel's reason if the holder could not, HolderError or ConnectionError if it does not answer.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as channel:
        channel.setblocking(False)  # noqa: FBT003  the standard library's signature
        channel.connect(str(path))
        channel.send(json.dumps({"op": op, "name": name}).encode())
        try:
            async with asyncio.timeout(timeout_s):
                reply = await when_ready(channel, lambda: receive(channel, _MAX_REPLY_BYTES))
        except TimeoutError as error:
            raise HolderError(
                f"the network's holder did not answer {op!r} within {timeout_s:g} s",
                hint="banger daemon stop, then start your VMs again",
            ) from error
    try:
        return _checked(op, reply.data, len(reply.descriptors), expect), list(reply.descriptors)
    except BaseException:
        for descriptor in reply.descriptors:
            os.close(descriptor)
        raise


async def ask_one(path: Path, op: str, *, name: str = "") -> int:
    """As `ask`, for a request that is answered with one descriptor."""
    _, (descriptor,) = await ask(path, op, expect=1, name=name)
    return descriptor


def _checked(op: str, data: bytes, count: int, expect: int) -> Mapping[str, Any]:
    try:
        reply = json.loads(data)
    except ValueError:
        reply = None
    if not isinstance(reply, dict):
        raise HolderError(f"the network's holder ended or answered {op!r} with no sense")
    if not reply.get("ok"):
        if reply.get("errno"):
            raise OSError(int(reply["errno"]), f"{op}: {reply.get('error')}")
        raise HolderError(f"the network's holder refused {op!r}", detail=str(reply.get("error")))
    if count != expect:
        raise HolderError(f"the network's holder answered {op!r} with {count} descriptors")
    return reply
