"""The agent of one VM, as the engine uses it: requests over one mux that is connected when needed and again when it broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import quote

import msgspec

from banger.guest.exec_session import AgentExec
from banger.model.clock import Deadline
from banger.model.errors import (
    BangerError,
    GuestNotReadyError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
)
from banger.model.machine import VmPaths
from banger.wire.http1 import Exchange, HttpError
from banger.wire.mux import Mux, MuxStream

AGENT_PORT = 1024
MAX_JSON_BYTES = 1 << 20
CALL_S = 5.0
IDLE_S = 120.0
_RETRY_S = 0.05
_ERRORS: Mapping[int, type[BangerError]] = {400: InvalidInputError, 404: NotFoundError}


class AgentGuest:
    """See `engine.ports.Guest`. Nothing is connected before the first call."""

    def __init__(self, paths: VmPaths) -> None:
        self._paths = paths
        self._mux: Mux | None = None
        self._lock = asyncio.Lock()

    async def _channel(self) -> Mux:
        async with self._lock:
            if self._mux is None or self._mux.closed.is_set():
                self._mux = await Mux.connect(self._paths.agent_socket)
            return self._mux

    def _headers(self) -> dict[str, str]:
        try:
            return {"Authorization": f"Bearer {self._paths.agent_token.read_text().strip()}"}
        except FileNotFoundError:
            return {}

    @asynccontextmanager
    async def _within(self, timeout_s: float, what: str) -> AsyncIterator[None]:
        """Everything that can go wrong with a guest becomes one error."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except (TimeoutError, OSError, HttpError) as error:
            detail = (
                f"no answer within {timeout_s:g} s"
                if isinstance(error, TimeoutError)
                else str(error)
            )
            raise GuestNotReadyError(
                f"the guest's agent did not answer {what}",
                detail=detail,
                hint="banger vm logs NAME shows its console",
            ) from error

    async def _json(
        self, method: str, target: str, timeout_s: float, body: object = None, *, done: bool = False
    ) -> object:
        async with self._within(timeout_s, f"{method} {target}"):
            stream = await (await self._channel()).open(AGENT_PORT)
            try:
                exchange = Exchange(stream)
                data = b"" if body is None else msgspec.json.encode(body)
                await exchange.send(method, target, self._headers(), data)
                status = await exchange.status()
                if done and status == 204:
                    return None
                answer = await exchange.json(MAX_JSON_BYTES)
            finally:
                await stream.close()
        if status >= 300:
            raise _refusal(status, answer, f"{method} {target}")
        return answer

    async def wait_connected(self, timeout_s: float) -> None:
        """Return at the agent's first healthz."""
        deadline = Deadline.after(timeout_s)
        while True:
            try:
                await self.healthz(max(deadline.remaining_s, 0.001))
            except GuestNotReadyError:
                if deadline.remaining_s < _RETRY_S:
                    raise
                await asyncio.sleep(_RETRY_S)
            else:
                return

    async def healthz(self, timeout_s: float = 2.0) -> Mapping[str, object]:
        """The agent's health."""
        return _mapping(await self._json("GET", "/healthz", timeout_s))

    async def wait_services(self, timeout_s: float) -> Mapping[str, object]:
        """Health once every service answers, or as it is at the end of ``timeout_s``."""
        wait_ms = max(1, int(min(timeout_s, 3600) * 1000) - 500)
        return _mapping(await self._json("GET", f"/healthz?wait_ms={wait_ms}", timeout_s + 2))

    async def stats(self, timeout_s: float = 2.0) -> Mapping[str, object]:
        """Use of resources."""
        return _mapping(await self._json("GET", "/stats", timeout_s))

    async def ports(self, timeout_s: float = 2.0) -> list[Mapping[str, object]]:
        """Listening sockets."""
        answer = await self._json("GET", "/ports", timeout_s)
        if not isinstance(answer, list) or len(answer) > 4096:
            raise GuestNotReadyError("the guest's agent gave a malformed answer to /ports")
        return [_mapping(item) for item in answer]

    async def exec(self, request: Mapping[str, object]) -> AgentExec:
        """Start a command."""
        async with self._within(CALL_S, "POST /exec"):
            stream = await (await self._channel()).open(AGENT_PORT)
            try:
                exchange = Exchange(stream)
                headers = {**self._headers(), "Connection": "Upgrade", "Upgrade": "banger-exec"}
                await exchange.send("POST", "/exec", headers, msgspec.json.encode(request))
                status = await exchange.status()
                if status != 101:
                    answer = await exchange.json(MAX_JSON_BYTES)
                    raise _refusal(status, answer, "POST /exec")  # noqa: TRY301  the handler closes the stream
            except BaseException:
                await stream.close()
                raise
        return AgentExec(stream, exchange.leftover())

    async def get_files(self, path: str) -> AsyncIterator[bytes]:
        """A tar stream of ``path``; each piece has a deadline of its own."""
        target = f"/files?path={quote(path, errors='surrogateescape')}"
        async with self._within(CALL_S, "GET /files"):
            stream = await (await self._channel()).open(AGENT_PORT)
        try:
            exchange = Exchange(stream)
            async with self._within(IDLE_S, "GET /files"):
                await exchange.send("GET", target, self._headers())
                status = await exchange.status()
                if status != 200:
                    raise _refusal(status, await exchange.json(MAX_JSON_BYTES), f"GET {path}")
            body = exchange.body()
            while True:
                async with self._within(IDLE_S, "GET /files"):
                    chunk = await anext(body, b"")
                if not chunk:
                    return
                yield chunk
        finally:
            await stream.close()

    async def put_files(self, path: str, tar: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into the directory ``path``."""
        target = f"/files?path={quote(path, errors='surrogateescape')}"
        async with self._within(CALL_S, "PUT /files"):
            stream = await (await self._channel()).open(AGENT_PORT)
        try:
            exchange = Exchange(stream)
            sending = asyncio.ensure_future(exchange.send("PUT", target, self._headers(), tar))
            try:
                status, answer = await self._put_outcome(exchange, sending)
            finally:
                sending.cancel()
                await asyncio.wait({sending})
        finally:
            await stream.close()
        if status >= 300:
            raise _refusal(status, answer, f"PUT {path}")

    async def _put_outcome(
        self, exchange: Exchange, sending: asyncio.Future[None]
    ) -> tuple[int, object]:
        """The answer; it may come before all is sent, when the agent refuses."""
        try:
            answering = asyncio.ensure_future(exchange.status())
            both: set[asyncio.Future[Any]] = {sending, answering}
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if sending.done() and not answering.done():
                sending.result()
            async with self._within(IDLE_S, "PUT /files"):
                status = await answering
                return status, None if status == 204 else await exchange.json(MAX_JSON_BYTES)
        finally:
            answering.cancel()

    async def proxy(self, port: int) -> MuxStream:
        """A stream to a TCP port of the guest."""
        try:
            async with asyncio.timeout(CALL_S):
                return await (await self._channel()).open(port)
        except (TimeoutError, OSError) as error:
            raise RefusedError(
                f"port {port} of the guest cannot be reached",
                detail=str(error),
                hint="banger vm ports NAME",
            ) from error

    async def shutdown(self, *, reboot: bool = False) -> None:
        """Ask init to power off or reboot; returns when it was told."""
        await self._json("POST", "/shutdown", CALL_S, {"reboot": reboot}, done=True)

    async def close(self) -> None:
        """Close the channel."""
        mux, self._mux = self._mux, None
        if mux is not None:
            await mux.close()


def _mapping(answer: object) -> Mapping[str, object]:
    if not isinstance(answer, dict):
        raise GuestNotReadyError("the guest's agent gave a malformed answer")
    return answer


def _refusal(status: int, answer: object, what: str) -> BangerError:
    said = answer if isinstance(answer, dict) else {}
    text = str(said.get("what", f"the guest's agent refused {what} with status {status}"))[:500]
    kind = _ERRORS.get(status, RefusedError if status < 500 else BangerError)
    return kind(
        text, detail=str(said.get("detail", ""))[:1000], hint=str(said.get("hint", ""))[:500]
    )


def connect_guest(paths: VmPaths) -> AgentGuest:
    """The guest whose VMM has its sockets at ``paths``."""
    return AgentGuest(paths)
