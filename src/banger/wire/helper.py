"""How banger-helper is spoken to: a SEQPACKET Unix socket, one JSON request and one JSON reply a message, descriptors by SCM_RIGHTS.

    {"op": "hello"}                        -> {"ok": true, "result": {"protocol": 1, …}}
    {"op": "uplink.detach", "slot": 3}     -> {"ok": false, "error": {"code", "what", "detail", "hint"}}

Requests are small and bounded; descriptors go only to the helper. An error is the one that its verb raised, in its three parts.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from banger.model.clock import monotonic_ms
from banger.model.errors import BangerError, HostLacksError, RefusedError, from_code
from banger.wire.seqpacket import when_ready

PROTOCOL = 1
MAX_REQUEST_BYTES = 4096
MAX_REPLY_BYTES = 1 << 16
REQUEST_S = 20.0
TOO_OFTEN = "asks too often"
_AGAIN_S = 0.3


class BadRequestError(ValueError):
    """A message that is no request; its sender is told why, in a few words."""


@dataclass(frozen=True, slots=True)
class Request:
    """One request: which verb, its arguments, its descriptors (the receiver closes them)."""

    op: str
    arguments: Mapping[str, int | str | bool] = field(default_factory=dict)
    descriptors: tuple[int, ...] = ()


def parse_request(data: bytes, descriptors: tuple[int, ...] = ()) -> Request:
    """The request in a message; BadRequestError if there is none. Arguments are integers, short texts and truth values, no more."""
    if len(data) > MAX_REQUEST_BYTES:
        raise BadRequestError("too long")
    try:
        found = json.loads(data, parse_float=_refuse, parse_constant=_refuse)
    except (ValueError, RecursionError) as error:
        raise BadRequestError("not JSON") from error
    if not isinstance(found, dict) or not isinstance(found.get("op"), str):
        raise BadRequestError("no object with an op")
    op = found.pop("op")
    for value in found.values():
        if not isinstance(value, int | str | bool):
            raise BadRequestError("an argument is neither number, text nor truth value")
    return Request(op, found, descriptors)


def _refuse(text: str) -> None:
    raise ValueError(text)


def encode_request(op: str, arguments: Mapping[str, int | str | bool]) -> bytes:
    """A request as a message."""
    return json.dumps({"op": op, **arguments}).encode()


def encode_result(result: Mapping[str, Any]) -> bytes:
    """A reply that says what was done."""
    return json.dumps({"ok": True, "result": result}).encode()


def encode_error(error: BangerError) -> bytes:
    """A reply that says what was not, and why, cut to what fits."""
    parts = {"code": error.code, "what": error.what, "detail": error.detail, "hint": error.hint}
    return json.dumps({"ok": False, "error": {k: v[:2000] for k, v in parts.items()}}).encode()


def decode_reply(data: bytes) -> Mapping[str, Any]:
    """The result in a reply; raises the error that it holds."""
    try:
        reply = json.loads(data)
        if reply["ok"] is True and isinstance(reply["result"], dict):
            return dict(reply["result"])
        error = {key: str(reply["error"][key]) for key in ("code", "what", "detail", "hint")}
    except (ValueError, KeyError, TypeError, RecursionError) as broken:
        raise BangerError(
            "banger-helper ended or answered with no sense",
            detail=data[:200].decode(errors="replace"),
            hint="journalctl -u banger-helper",
        ) from broken
    raise from_code(error["code"], error["what"], detail=error["detail"], hint=error["hint"])


async def ask(
    path: Path,
    op: str,
    *,
    descriptors: Iterable[int] = (),
    timeout_s: float = REQUEST_S,
    **arguments: int | str | bool,
) -> Mapping[str, Any]:
    """One request to the helper behind ``path``; its result, or the error that it answered. HostLacksError if there is no helper for us.

    One that is refused because this user asks too often is made again, as long as there is time.
    """
    fds, end_ms = list(descriptors), monotonic_ms() + timeout_s * 1000
    while True:
        try:
            return await _ask_once(path, op, arguments, fds, timeout_s)
        except RefusedError as error:
            if not error.what.endswith(TOO_OFTEN) or monotonic_ms() + _AGAIN_S * 1000 > end_ms:
                raise
        await asyncio.sleep(_AGAIN_S)


async def _ask_once(
    path: Path,
    op: str,
    arguments: Mapping[str, int | str | bool],
    descriptors: list[int],
    timeout_s: float,
) -> Mapping[str, Any]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as channel:
        channel.setblocking(False)  # noqa: FBT003  the standard library's signature
        try:
            channel.connect(os.fspath(path))
            socket.send_fds(channel, [encode_request(op, arguments)], descriptors)
            async with asyncio.timeout(timeout_s):
                data = await when_ready(channel, lambda: channel.recv(MAX_REPLY_BYTES))
        except TimeoutError as error:
            raise BangerError(
                f"banger-helper did not answer {op!r} within {timeout_s:g} s",
                hint="journalctl -u banger-helper",
            ) from error
        except OSError as error:
            raise not_there(path, error) from error
    return decode_reply(data)


def not_there(path: Path, error: OSError) -> HostLacksError:
    """That there is no helper, or none for this user."""
    if isinstance(error, PermissionError | ConnectionResetError | BrokenPipeError):
        return HostLacksError(
            f"banger-helper at {path} does not let this user in",
            detail="it serves root and the members of its group",
            hint="sudo usermod -aG banger $USER, then log in again",
        )
    return HostLacksError(
        "banger-helper does not run",
        detail=f"{path}: {error.strerror or error}",
        hint="sudo banger setup helper",
    )
