"""The helper's socket: connections are admitted by `policy`, their requests answered one after the other, each with a deadline.

A descriptor that comes with a request may be anything, and closing it may wait for its maker (FUSE): that is done in a thread of its own,
and counts as that user's connection until it is over.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import threading
from contextlib import suppress

from banger.helper.audit import AuditLog
from banger.helper.policy import Caller, Policy, caller_of
from banger.helper.verbs import VERBS, Call, World, check
from banger.host.ownership import is_network_namespace
from banger.model.clock import monotonic_ms
from banger.model.errors import BangerError, InvalidInputError
from banger.wire.helper import (
    MAX_REQUEST_BYTES,
    BadRequestError,
    Request,
    encode_error,
    encode_result,
    parse_request,
)
from banger.wire.seqpacket import Message, receive, when_ready

log = logging.getLogger(__name__)
IDLE_S = 10.0
VERB_S = 15.0
MAX_REQUESTS = 64  # a connection


class Server:
    """Serves ``listener``, which it owns, until `close`."""

    def __init__(
        self, listener: socket.socket, world: World, policy: Policy, audit: AuditLog
    ) -> None:
        self._listener = listener
        self._listener.setblocking(False)  # noqa: FBT003  the standard library's signature
        self._world = world
        self._policy = policy
        self._audit = audit
        self._conversations: set[asyncio.Task[None]] = set()
        self._refused_by: dict[int, str] = {}

    async def serve(self) -> None:
        """Until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # out of descriptors, or the client has gone already
                log.warning("accept: %s", error)
                await asyncio.sleep(0.1)
                continue
            self._admit(connection)

    async def close(self) -> None:
        """End all conversations; what they asked for is done or undone."""
        tasks = set(self._conversations)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        self._listener.close()

    def _admit(self, connection: socket.socket) -> None:
        try:
            caller = caller_of(connection)
        except OSError as error:
            log.warning("a caller cannot be told: %s", error)
            connection.close()
            return
        why = self._policy.admit(caller)
        if why:
            if self._refused_by.get(caller.uid) != why:  # once: a flood fills no log
                self._refused_by = {**dict(list(self._refused_by.items())[-63:]), caller.uid: why}
                self._note("connect", caller, ok=False, why=why)
            connection.close()
            return
        self._refused_by.pop(caller.uid, None)
        task = asyncio.create_task(self._converse(connection, caller))
        self._conversations.add(task)
        task.add_done_callback(self._conversations.discard)

    async def _converse(self, connection: socket.socket, caller: Caller) -> None:
        stuck = False
        try:
            with connection:
                for _ in range(MAX_REQUESTS):
                    async with asyncio.timeout(IDLE_S):
                        message = await when_ready(
                            connection, lambda: receive(connection, MAX_REQUEST_BYTES + 1)
                        )
                    if not message.data and not message.descriptors:
                        return
                    try:
                        reply = await self._reply(caller, message)
                    finally:
                        stuck = self._close_all(message.descriptors, caller)
                    connection.send(reply)
                    if stuck:  # the connection's place is the thread's now
                        return
        except (TimeoutError, OSError):
            pass  # the client is gone, or says nothing
        finally:
            if not stuck:
                self._policy.leave(caller)

    async def _reply(self, caller: Caller, message: Message) -> bytes:
        began_ms = monotonic_ms()
        op = "?"
        try:
            self._policy.count_request(caller)
            request = parse_request(b"" if message.cut else message.data, message.descriptors)
            op = request.op[:40]
            reply = encode_result(await self._do(caller, request))
        except Exception as error:  # noqa: BLE001  of one request: the others are served all the same
            known = _explained(op, error)
            took_ms = round(monotonic_ms() - began_ms, 1)
            self._note(op, caller, ok=False, code=known.code, why=known.what, ms=took_ms)
            return encode_error(known)
        if not VERBS[op].reads:
            self._note(op, caller, ok=True, ms=round(monotonic_ms() - began_ms, 1))
        return reply

    def _note(self, what: str, caller: Caller, **facts: str | float | bool | None) -> None:
        """A line in the audit log; where that cannot be written the journal says so, and the helper goes on."""
        try:
            self._audit.note(what, caller, **facts)
        except OSError:
            log.exception("the audit log cannot be written: %s by %d", what[:40], caller.uid)

    async def _do(self, caller: Caller, request: Request) -> dict[str, object]:
        verb = check(request)
        call = Call(caller, request.arguments, request.descriptors)
        try:
            async with asyncio.timeout(VERB_S):
                return dict(await verb.run(self._world, call))
        except TimeoutError as error:
            raise BangerError(
                f"{request.op} did not end within {VERB_S:g} s", hint="journalctl -u banger-helper"
            ) from error

    def _close_all(self, descriptors: tuple[int, ...], caller: Caller) -> bool:
        """Close them; whether a thread does it, which leaves the connection's place for the caller when it is done."""
        doubtful = []
        for descriptor in descriptors:
            if is_network_namespace(descriptor):
                os.close(descriptor)
            else:
                doubtful.append(descriptor)
        if not doubtful:
            return False
        loop = asyncio.get_running_loop()

        def work() -> None:
            for descriptor in doubtful:
                with suppress(OSError):
                    os.close(descriptor)
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(self._policy.leave, caller)

        threading.Thread(target=work, daemon=True, name="close").start()
        return True


def _explained(op: str, error: Exception) -> BangerError:
    """As its caller is told; what nobody foresaw is for the log."""
    if isinstance(error, BangerError):
        return error
    if isinstance(error, BadRequestError):
        return InvalidInputError("this is no request", detail=str(error), hint="banger doctor")
    log.error("%s failed", op, exc_info=error)
    detail = str(error) if isinstance(error, OSError) else f"internal error: {type(error).__name__}"
    return BangerError(f"{op} failed", detail=detail, hint="journalctl -u banger-helper")
