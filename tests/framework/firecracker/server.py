"""The API's socket: HTTP/1.1 with keep-alive, one request at a time over all connections, ten connections at most, as Firecracker's."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import h11

from tests.framework.firecracker.log import Log
from tests.framework.firecracker.official import Official
from tests.framework.firecracker.play import Play
from tests.framework.firecracker.routes import FaultError, route
from tests.framework.firecracker.vmm import Vmm

MAX_CONNECTIONS = 10
METHODS = ("GET", "PUT", "PATCH", "DELETE")
_FULL = (
    b"HTTP/1.1 503\r\nServer: Firecracker API\r\nConnection: close\r\nContent-Length: 40\r\n\r\n"
    b'{ "error": "Too many open connections" }'
)
_CHUNK_BYTES = 65536


@dataclass(frozen=True, slots=True)
class Answer:
    """What goes back."""

    status: int
    body: bytes = b""
    deprecated: bool = False

    @property
    def headers(self) -> list[tuple[str, str]]:
        """As Firecracker sends them."""
        made = [("Server", "Firecracker API"), ("Connection", "keep-alive")]
        if self.deprecated:
            made.append(("Deprecation", "true"))
        if self.status != 204:
            made += [("Content-Type", "application/json"), ("Content-Length", str(len(self.body)))]
        return made


def fault(message: str, status: int = 400, *, deprecated: bool = False) -> Answer:
    """An answer that refuses."""
    return Answer(status, _compact({"fault_message": message}), deprecated)


def unreadable(why: str) -> Answer:
    """What Firecracker's HTTP library says to a request that it cannot read. It is no JSON: there is a line break in the string."""
    return Answer(400, f'{{ "error": "{why}\nAll previous unanswered requests will be dropped." }}'.encode())  # fmt: skip


def _compact(value: Any) -> bytes:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()


class Server:
    """Answers requests with ``vmm``; ``official`` judges them too, where it is there."""

    def __init__(self, vmm: Vmm, play: Play, log: Log, official: Official | None, limit_bytes: int) -> None:  # fmt: skip
        self._vmm = vmm
        self._play = play
        self._log = log
        self._official = official
        self._limit_bytes = limit_bytes
        self._one = asyncio.Lock()
        self._connections: set[asyncio.Task[None]] = set()

    async def run(self, listener: socket.socket) -> None:
        """Serve until cancelled."""
        self._log("API server started.", thread="fc_api")
        loop = asyncio.get_running_loop()
        try:
            while True:
                client, _ = await loop.sock_accept(listener)
                client.setblocking(False)
                if len(self._connections) >= MAX_CONNECTIONS:
                    with suppress(OSError):
                        client.send(_FULL)
                    client.close()
                    continue
                task = asyncio.create_task(self._serve(client), name="API connection")
                self._connections.add(task)
                task.add_done_callback(self._connections.discard)
        finally:
            for task in list(self._connections):
                task.cancel()
            await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, client: socket.socket) -> None:
        try:
            await self._converse(client)
        except OSError as error:  # the client has gone
            self._log(f"API: {error}", "Debug", thread="fc_api")
        finally:
            client.close()

    async def _converse(self, client: socket.socket) -> None:
        connection = h11.Connection(h11.SERVER)
        while True:
            try:
                request, body = await self._read(client, connection)
            except (h11.RemoteProtocolError, ValueError) as error:
                await self._send_raw(client, unreadable(str(error)))
                return
            if request is None:
                return
            method, target = request.method.decode(), request.target.decode()
            endpoint = f"{method} {target}"
            if endpoint in self._play.garbage:
                await asyncio.get_running_loop().sock_sendall(client, os.urandom(512))
                return
            if endpoint in self._play.drop:
                return
            answer = await self._answer(method, target, body)
            if connection.our_state is not h11.SEND_RESPONSE:
                return
            head = h11.Response(status_code=answer.status, headers=answer.headers, reason=b"")
            data = connection.send(head) or b""
            data += connection.send(h11.Data(data=answer.body)) or b""
            data += connection.send(h11.EndOfMessage()) or b""
            await asyncio.get_running_loop().sock_sendall(client, data)
            if connection.our_state is h11.MUST_CLOSE:
                return
            connection.start_next_cycle()

    async def _read(
        self, client: socket.socket, connection: h11.Connection
    ) -> tuple[h11.Request | None, bytes]:
        """The next request and its body; None at the end. ValueError or h11's error for one that cannot be read."""
        loop = asyncio.get_running_loop()
        request: h11.Request | None = None
        body = b""
        while True:
            event = connection.next_event()
            if event is h11.NEED_DATA:
                if connection.they_are_waiting_for_100_continue:
                    go_on = connection.send(h11.InformationalResponse(status_code=100, headers=[], reason=b""))  # fmt: skip
                    await loop.sock_sendall(client, go_on or b"")
                connection.receive_data(await loop.sock_recv(client, _CHUNK_BYTES))
            elif isinstance(event, h11.Request):
                request = event
                self._check_head(event)
            elif isinstance(event, h11.Data):
                body += event.data
            elif isinstance(event, h11.EndOfMessage):
                return request, body
            else:  # the connection was closed
                return None, b""

    def _check_head(self, request: h11.Request) -> None:
        if request.method.decode() not in METHODS:
            raise ValueError("Invalid HTTP Method: Unsupported HTTP method.")
        length = next((int(value) for name, value in request.headers if name == b"content-length"), 0)  # fmt: skip
        if length > self._limit_bytes:
            raise ValueError(
                f"Request payload with size {length} is larger than the limit of {self._limit_bytes} allowed by server."
            )

    @staticmethod
    async def _send_raw(client: socket.socket, answer: Answer) -> None:
        lines = [f"HTTP/1.1 {answer.status} ", *(f"{name}: {value}" for name, value in answer.headers)]  # fmt: skip
        data = "\r\n".join([*lines, "", ""]).encode() + answer.body
        await asyncio.get_running_loop().sock_sendall(client, data)

    async def _answer(self, method: str, target: str, body: bytes) -> Answer:
        endpoint = f"{method} {target}"
        async with self._one:
            self._note(method, target, body)
            if endpoint in self._play.hang:
                await asyncio.Event().wait()
            await asyncio.sleep((self._play.delay_ms or {}).get(endpoint, 0) / 1000)
            answer = await self._do(method, target, body)
        if self._official is not None and answer.status < 500:
            wrong = self._official.check_answer(method, target, answer.status, answer.body)
            if wrong and self._official.operation(method, target):
                self._log(
                    f"the official API does not know this answer: {'; '.join(wrong)}", "Error"
                )
                return fault(f"stand-in: answer not by the official API: {'; '.join(wrong)}", 500)
        return answer

    def _note(self, method: str, target: str, body: bytes) -> None:
        what = f'{method.capitalize()} request on "{target}"'
        if body and not target.startswith("/mmds"):
            what += f" with body {json.dumps(body.decode(errors='replace'), ensure_ascii=False)}"
        self._log(f"The API server received a {what}.", thread="fc_api")

    async def _do(self, method: str, target: str, body: bytes) -> Answer:
        deprecated = ""
        try:
            refused = (self._play.refuse or {}).get(f"{method} {target}")
            if refused:
                raise FaultError(refused)  # noqa: TRY301  one place makes answers of faults
            call = route(method, target, body, self._play.numbers)
            deprecated = call.deprecated
            self._judge(method, target, body)
            value = await self._vmm.perform(call)
        except FaultError as error:
            name = {400: "Bad Request", 413: "Payload too large"}[error.status]
            self._log(f"Received Error. Status code: {error.status} {name}. Message: {error.message}", "Error", "fc_api")  # fmt: skip
            return fault(error.message, error.status, deprecated=bool(deprecated))
        except OSError as error:  # not the client's, whose own end it
            raise RuntimeError("the stand-in is broken") from error
        if deprecated:
            self._log(deprecated, "Warn", "fc_api")
        if call.action == "act" and call.values["action_type"] == "InstanceStart":
            self._plan_death()
        status, word = (204, "No Content") if value is None else (200, "OK")
        self._log(f"The request was executed successfully. Status code: {status} {word}.", thread="fc_api")  # fmt: skip
        return Answer(status, b"" if value is None else _compact(value), bool(deprecated))

    def _judge(self, method: str, target: str, body: bytes) -> None:
        """Refuse what the official description does not allow although Firecracker (or this stand-in) would take it."""
        if self._official is not None:
            wrong = self._official.check_request(method, target.rstrip("/") or "/", body)
            if wrong:
                raise FaultError(f"stand-in: not by the official API: {'; '.join(wrong)}")

    def _plan_death(self) -> None:
        if self._play.die_after_start_ms is not None:
            delay_s = self._play.die_after_start_ms / 1000
            asyncio.get_running_loop().call_later(delay_s, os.kill, os.getpid(), signal.SIGKILL)
