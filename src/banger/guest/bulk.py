"""Bulk transfers beside the mux: each over a raw port of its own. The format is stated in ``banger_agent.bulk``, whose twin this is.

A port is a Unix socket of the VMM with one client at a time; what the last one left in it lies before the mark of this transfer, which
has a fresh nonce. Nothing here buffers more than a block: whoever is slow makes the others wait.
"""

from __future__ import annotations

import asyncio
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Final

from banger.model.machine import VmPaths

HEADER: Final = "Banger-Bulk"
MAGIC: Final = b"\xb4banger-bulk1\r\n\x00"
NONCE_BYTES: Final = 16
MAX_BLOCK_BYTES: Final = 256 * 1024 - 4
MAX_PORTS: Final = 4
MAX_STALE_BYTES: Final = 16 << 20
_RECEIVE_BYTES = 64 * 1024
_LENGTH = struct.Struct(">I")


class BulkLostError(ConnectionError):
    """The port was closed, or what came out of it is no transfer."""


class BulkPort:
    """A connected port, for one transfer. The caller sets deadlines."""

    def __init__(self, number: int, connection: socket.socket) -> None:
        self._connection = connection
        self._mark = MAGIC + secrets.token_bytes(NONCE_BYTES)
        self._early = b""
        self.header: Mapping[str, str] = {HEADER: f"{number} {self._mark[len(MAGIC) :].hex()}"}

    async def send_mark(self) -> None:
        """Say where a transfer to the guest begins."""
        await self._put(self._mark)

    async def send(self, tar: AsyncIterator[bytes], idle_s: float) -> None:
        """Send all of ``tar`` and its end; BulkLostError if the guest takes no block within ``idle_s`` seconds, or is gone.

        What ``tar`` raises is raised, and the guest is not told that it was all.
        """
        block = bytearray(_LENGTH.size)
        async for chunk in tar:
            view = memoryview(chunk)
            while view:
                room = MAX_BLOCK_BYTES + _LENGTH.size - len(block)
                block += view[:room]
                view = view[room:]
                if len(block) == MAX_BLOCK_BYTES + _LENGTH.size:
                    await self._send_block(block, idle_s)
                    block = bytearray(_LENGTH.size)
        if len(block) > _LENGTH.size:
            await self._send_block(block, idle_s)
        await self._send_block(bytearray(_LENGTH.size), idle_s)

    async def _send_block(self, block: bytearray, idle_s: float) -> None:
        """``block`` begins with room for its length."""
        _LENGTH.pack_into(block, 0, len(block) - _LENGTH.size)
        try:
            async with asyncio.timeout(idle_s):
                await self._put(block)
        except TimeoutError:
            raise BulkLostError(f"the guest took nothing for {idle_s:g} s") from None
        await asyncio.sleep(0)  # a port that always has room would keep the loop from all else

    async def _put(self, data: bytes | bytearray) -> None:
        try:
            await asyncio.get_running_loop().sock_sendall(self._connection, data)
        except OSError as error:
            raise BulkLostError(f"the bulk port was closed: {error}") from error

    async def find_mark(self) -> None:
        """Skip what an earlier transfer left, up to the guest's mark; BulkLostError if there is too much of it."""
        seen, skipped = b"", 0
        while (at := seen.find(self._mark)) < 0:
            keep = seen[-len(self._mark) + 1 :]
            skipped += len(seen) - len(keep)
            if skipped > MAX_STALE_BYTES:
                raise BulkLostError("the bulk port has no mark in it")
            seen = keep + await self._some()
            await asyncio.sleep(0)
        self._early = seen[at + len(self._mark) :]

    async def block(self) -> bytes:
        """The next block, empty at the end; BulkLostError if the port ends before."""
        (length,) = _LENGTH.unpack(await self._exactly(_LENGTH.size))
        if length > MAX_BLOCK_BYTES:
            raise BulkLostError("the guest's agent sent nonsense over the bulk port")
        await asyncio.sleep(0)
        return await self._exactly(length)

    async def _some(self) -> bytes:
        loop = asyncio.get_running_loop()
        try:
            data = await loop.sock_recv(self._connection, _RECEIVE_BYTES)
        except OSError as error:
            raise BulkLostError(f"the bulk port was closed: {error}") from error
        if not data:
            raise BulkLostError("the bulk port was closed")
        return data

    async def _exactly(self, size: int) -> bytes:
        data = bytearray(size)
        filled = min(size, len(self._early))
        data[:filled], self._early = self._early[:filled], self._early[filled:]
        loop, view = asyncio.get_running_loop(), memoryview(data)
        while filled < size:
            try:
                count = await loop.sock_recv_into(self._connection, view[filled:])
            except OSError as error:
                raise BulkLostError(f"the bulk port was closed: {error}") from error
            if count == 0:
                raise BulkLostError("the bulk port was closed")
            filled += count
        return bytes(data)

    def abort(self) -> None:
        """Wake whoever reads or writes, with BulkLostError."""
        with suppress(OSError):  # the VMM has gone: they know
            self._connection.shutdown(socket.SHUT_RDWR)


class BulkPorts:
    """The bulk ports of one VM, at most ``count``, each used by one transfer at a time."""

    def __init__(self, paths: VmPaths, count: int = MAX_PORTS) -> None:
        self._paths = paths
        self._count = count
        self._busy: set[int] = set()

    @contextmanager
    def take(self) -> Iterator[BulkPort | None]:
        """A free port, closed at the end; None if the VM has none, or none is free."""
        for number in range(self._count):
            if number in self._busy:
                continue
            connection = _connect(str(self._paths.bulk_socket(number)))
            if connection is not None:
                break
        else:
            yield None
            return
        self._busy.add(number)
        try:
            with connection:
                yield BulkPort(number, connection)
        finally:
            self._busy.discard(number)


def _connect(path: str) -> socket.socket | None:
    connection = socket.socket(socket.AF_UNIX)
    try:
        connection.settimeout(0)
        connection.connect(path)
    except OSError:  # not there, or (EAGAIN) too many wait for it already
        connection.close()
        return None
    return connection
