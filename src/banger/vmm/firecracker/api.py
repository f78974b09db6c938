"""Firecracker's API: one request after the other over one connection to its Unix socket, each with a deadline.

The connection is made when it is needed and kept. A request that was given up leaves an answer behind that nobody waits for, so its
connection is never used again. What was asked may still happen, once Firecracker answers again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path

import msgspec

from banger.model.errors import GuestNotReadyError, RefusedError
from banger.vmm.firecracker.bodies import Endpoint, InstanceInfo, Message
from banger.wire.http1 import Exchange, HttpError
from banger.wire.unix import UnixStream, connect

MAX_ANSWER_BYTES = 64 * 1024
_MAX_FAULT_CHARACTERS = 2000
_HEADERS: Mapping[str, str] = {"Accept": "application/json", "Content-Type": "application/json"}


class FaultError(RefusedError):
    """Firecracker said no; ``detail`` is its fault message."""

    next_step = "banger vm logs NAME --vmm"

    def __init__(self, what: str, endpoint: Endpoint, *, detail: str) -> None:
        super().__init__(what, detail=detail)
        self.endpoint = endpoint


class Api:
    """The API behind the socket ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._stream: UnixStream | None = None
        self._exchange: Exchange | None = None
        self._lock = asyncio.Lock()

    async def connect(self) -> None:
        """Connect unless connected; OSError if nobody listens."""
        async with self._lock:
            if self._exchange is None:
                await self._open()

    async def send(self, message: Message, timeout_s: float) -> None:
        """Ask for what ``message`` says; FaultError if Firecracker refuses, GuestNotReadyError if it says nothing in time."""
        await self._within(message.endpoint, message.target, message.encoded(), timeout_s)

    async def describe(self, timeout_s: float) -> InstanceInfo:
        """What Firecracker says of itself; errors as for `send`."""
        endpoint = InstanceInfo.endpoint
        answer = await self._within(endpoint, endpoint.path, b"", timeout_s)
        try:
            return msgspec.convert(answer, InstanceInfo)
        except msgspec.ValidationError as error:
            raise GuestNotReadyError(
                "Firecracker gave a malformed answer",
                detail=str(error),
                hint="banger vm logs NAME --vmm",
            ) from error

    async def _within(
        self, endpoint: Endpoint, target: str, body: bytes, timeout_s: float
    ) -> object:
        what = f"{endpoint.method} {target}"
        try:
            async with asyncio.timeout(timeout_s), self._lock:
                status, answer = await self._ask(endpoint.method, target, body)
        except (TimeoutError, OSError, HttpError) as error:
            how = f"within {timeout_s:g} s" if isinstance(error, TimeoutError) else "at all"
            raise GuestNotReadyError(
                f"Firecracker did not answer {what} {how}",
                detail=str(error) or f"socket {self._path}",
                hint="banger vm stop --force, if the VM does not answer either",
            ) from error
        if status >= 300:
            raise FaultError(f"Firecracker refused {what}", endpoint, detail=_fault(status, answer))
        return answer

    async def _ask(self, method: str, target: str, body: bytes) -> tuple[int, object]:
        try:
            exchange = await self._ready_exchange()
            await exchange.send(method, target, _HEADERS if body else {}, body)
            status = await exchange.status()
            return status, await exchange.json(MAX_ANSWER_BYTES)
        except BaseException:
            await self.close()
            raise

    async def _ready_exchange(self) -> Exchange:
        """On the connection that there is, if it is still good, else on a new one."""
        if self._exchange is not None and not self._exchange.renew():
            await self.close()
        if self._exchange is None or self._stream is None or self._stream.ended:
            await self.close()
            return await self._open()
        return self._exchange

    async def _open(self) -> Exchange:
        self._stream = await connect(self._path)
        self._exchange = Exchange(self._stream, "localhost")
        return self._exchange

    async def close(self) -> None:
        """Let go of the connection."""
        stream, self._stream, self._exchange = self._stream, None, None
        if stream is not None:
            stream.abort()


def _fault(status: int, answer: object) -> str:
    said = None
    if isinstance(
        answer, dict
    ):  # "error" is of the HTTP server before the API, such as too many connections
        said = answer.get("fault_message") or answer.get("error")
    return str(said)[:_MAX_FAULT_CHARACTERS] if said else f"status {status}, and no reason"
