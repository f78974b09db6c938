"""QEMU's monitor (QMP): connected when it is needed, dropped when it fails, every call with a deadline.

QEMU serves one connection at a time. A call that was given up leaves an answer behind that nobody waits for, so its
connection is never used again.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError, Runstate

from banger.model.errors import GuestNotReadyError, RefusedError

_DROP_S = 1.0
_WATCHED = ("SHUTDOWN", "GUEST_PANICKED")
logging.getLogger("qemu.qmp").setLevel(
    logging.CRITICAL
)  # what it logs as an error is raised as well, and handled here


class Monitor:
    """The monitor behind the socket ``path``."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._client: QMPClient | None = None
        self._events: list[Mapping[str, Any]] = []
        self._lock = asyncio.Lock()

    @property
    def connected(self) -> bool:
        """Whether there is a connection, as far as is known without asking."""
        return self._client is not None

    async def connect(self, timeout_s: float) -> None:
        """Connect unless connected; GuestNotReadyError if QEMU does not answer in time."""
        await self._within(timeout_s, "the connection", None)

    async def call(self, command: str, timeout_s: float) -> object:
        """The answer to ``command``; RefusedError if QEMU says no, GuestNotReadyError if it says nothing in time."""
        return await self._within(timeout_s, command, command)

    async def _within(self, timeout_s: float, what: str, command: str | None) -> object:
        try:
            async with asyncio.timeout(timeout_s), self._lock:
                return await self._ask(command)
        except ExecuteError as error:
            raise RefusedError(
                f"QEMU refused {command}",
                detail=error.error.error.desc,
                hint="banger vm logs NAME --vmm",
            ) from error
        except (TimeoutError, OSError, EOFError, QMPError) as error:
            how = f"within {timeout_s:g} s" if isinstance(error, TimeoutError) else "at all"
            raise GuestNotReadyError(
                f"QEMU's monitor did not answer {what} {how}",
                detail=str(error) or f"socket {self._path}",
                hint="banger vm stop --force, if the VM does not answer either",
            ) from error

    async def _ask(self, command: str | None) -> object:
        if self._client is not None and self._client.runstate is not Runstate.RUNNING:
            await self._drop()
        if self._client is None:
            await self._open()
        if command is None or self._client is None:
            return None
        try:
            return await self._client.execute(command)
        except ExecuteError:
            raise
        except BaseException:
            await self._drop()
            raise

    async def _open(self) -> None:
        connection = socket.socket(socket.AF_UNIX)
        try:
            connection.settimeout(0)
            connection.connect(
                str(self._path)
            )  # a full backlog is EAGAIN here, and would block a blocking socket
            client = QMPClient()
            client.events.names.update(_WATCHED)  # else it would keep every event for ever
            await client.connect(connection)
        except BaseException:
            connection.close()
            raise
        self._client = client

    async def _drop(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            with suppress(QMPError, OSError, EOFError, TimeoutError):
                async with asyncio.timeout(_DROP_S):
                    await client.disconnect()
            self._events += client.events.clear()

    async def last_events(self, timeout_s: float) -> list[Mapping[str, Any]]:
        """What QEMU, which has ended, said about it: everything up to the connection's end is read first."""
        client = self._client
        if client is not None:
            with suppress(TimeoutError):
                async with asyncio.timeout(timeout_s):
                    while client.runstate is Runstate.RUNNING:
                        await client.runstate_changed()
        await self._drop()
        return self._events

    async def close(self) -> None:
        """Disconnect; QEMU runs on."""
        await self._drop()
