"""The agent of one VM, as the engine uses it: requests over a channel that is connected when needed and again when it broke."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping

import msgspec

from banger.guest.answers import (
    AGENT_PORT,
    CALL_S,
    MAX_JSON_BYTES,
    START_S,
    mapping,
    refusal,
    within,
)
from banger.guest.bulk import MAX_PORTS, BulkPorts
from banger.guest.channel import Channel, MuxChannel, VsockChannel
from banger.guest.exec_session import AgentExec
from banger.guest.files import FileTransfers
from banger.model.clock import Deadline, monotonic_ms
from banger.model.errors import GuestNotReadyError, RefusedError
from banger.model.machine import VmPaths
from banger.wire.http1 import ByteStream, Exchange, HttpError

_RETRY_S = 0.05
_REFUSED_MS = 1000
"""A connection that fails sooner was refused; later, its device gave up on a guest that is busy (Firecracker does so after 2 s)."""


class AgentGuest:
    """See `engine.ports.Guest`. Nothing is connected before the first call."""

    def __init__(self, paths: VmPaths, agent: str) -> None:
        """``agent`` says what carries it: serial or vsock."""
        self._paths = paths
        vsock = agent == "vsock"
        self._channel: Channel = (
            VsockChannel(paths.vsock_socket, self._headers)
            if vsock
            else MuxChannel(paths.agent_socket)
        )
        ports = BulkPorts(paths, 0 if vsock else MAX_PORTS)
        self._files = FileTransfers(ports, self._stream, self._headers)

    async def _stream(self) -> ByteStream:
        return await self._channel.open(AGENT_PORT)

    async def _stream_of_busy(self) -> ByteStream:
        """As `_stream`, again and again as long as the guest is too busy to take the connection: nothing was asked of it yet.

        The caller's deadline ends it.
        """
        while True:
            began_ms = monotonic_ms()
            try:
                return await self._stream()
            except (TimeoutError, OSError, HttpError):
                if monotonic_ms() - began_ms < _REFUSED_MS:
                    raise

    def _headers(self) -> dict[str, str]:
        try:
            return {"Authorization": f"Bearer {self._paths.agent_token.read_text().strip()}"}
        except FileNotFoundError:
            return {}

    async def _json(
        self, method: str, target: str, timeout_s: float, body: object = None, *, done: bool = False
    ) -> object:
        async with within(timeout_s, f"{method} {target}"):
            stream = await self._stream()
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
            raise refusal(status, answer, f"{method} {target}")
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
        return mapping(await self._json("GET", "/healthz", timeout_s))

    async def wait_services(self, timeout_s: float) -> Mapping[str, object]:
        """Health once every service answers, or as it is at the end of ``timeout_s``."""
        wait_ms = max(1, int(min(timeout_s, 3600) * 1000) - 500)
        return mapping(await self._json("GET", f"/healthz?wait_ms={wait_ms}", timeout_s + 2))

    async def stats(self, timeout_s: float = 2.0) -> Mapping[str, object]:
        """Use of resources."""
        return mapping(await self._json("GET", "/stats", timeout_s))

    async def ports(self, timeout_s: float = 2.0) -> list[Mapping[str, object]]:
        """Listening sockets."""
        answer = await self._json("GET", "/ports", timeout_s)
        if not isinstance(answer, list) or len(answer) > 4096:
            raise GuestNotReadyError(
                "the guest's agent gave a malformed answer to /ports", hint="banger vm health NAME"
            )
        return [mapping(item) for item in answer]

    async def exec(self, request: Mapping[str, object]) -> AgentExec:
        """Start a command."""
        async with within(START_S, "POST /exec"):
            stream = await self._stream_of_busy()
            try:
                exchange = Exchange(stream)
                headers = {**self._headers(), "Connection": "Upgrade", "Upgrade": "banger-exec"}
                await exchange.send("POST", "/exec", headers, msgspec.json.encode(request))
                status = await exchange.status()
                if status != 101:
                    answer = await exchange.json(MAX_JSON_BYTES)
                    raise refusal(status, answer, "POST /exec")  # noqa: TRY301  the handler closes the stream
            except BaseException:
                await stream.close()
                raise
        return AgentExec(stream, exchange.leftover())

    def get_files(self, path: str) -> AsyncIterator[bytes]:
        """A tar stream of ``path``; each piece has a deadline of its own."""
        return self._files.get(path)

    async def put_files(self, path: str, tar: AsyncIterator[bytes]) -> None:
        """Unpack a tar stream into the directory ``path``."""
        await self._files.put(path, tar)

    async def proxy(self, port: int) -> ByteStream:
        """A stream to a TCP port of the guest."""
        try:
            async with asyncio.timeout(CALL_S):
                return await self._channel.open(port)
        except (TimeoutError, OSError, HttpError) as error:
            raise RefusedError(
                f"port {port} of the guest cannot be reached",
                detail=str(error),
                hint="banger vm ports NAME",
            ) from error

    async def set_clock(self, epoch_ms: int, timeout_s: float = 2.0) -> None:
        """Set the guest's clock to ``epoch_ms`` since 1970."""
        await self._json("POST", "/clock", timeout_s, {"epoch_ms": epoch_ms}, done=True)

    async def shutdown(self, *, reboot: bool = False) -> None:
        """Ask init to power off or reboot; returns when it was told."""
        await self._json("POST", "/shutdown", CALL_S, {"reboot": reboot}, done=True)

    async def close(self) -> None:
        """Close the channel."""
        await self._channel.close()


def connect_guest(paths: VmPaths, agent: str) -> AgentGuest:
    """The guest whose VMM has its sockets at ``paths``, its agent reached over ``serial`` or ``vsock``."""
    return AgentGuest(paths, agent)
