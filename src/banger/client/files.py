"""Tar streams in and out of a guest over HTTP."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager

from banger.api import routes
from banger.client.http_stream import LOST, UnixConnection, open_stream
from banger.client.transport import Transport, target, unreachable

IDLE_S = 120.0
"""So long may a transfer stand still: a guest without KVM may think a while over a large file."""


class _BrokenOffError(Exception):
    """The daemon stopped reading; its answer says why."""


class TarReader:
    """What ``tarfile.open(mode="r|", fileobj=…)`` wants: bytes as they come."""

    def __init__(self, transport: Transport, response: http.client.HTTPResponse) -> None:
        self._transport = transport
        self._response = response

    def read(self, size: int = 65536) -> bytes:
        """Up to ``size`` bytes, empty at the end; DaemonUnreachableError if the stream was cut."""
        try:
            return self._response.read(size)
        except LOST as error:
            raise unreachable(self._transport.path, error) from error


class TarWriter:
    """What ``tarfile.open(mode="w|", fileobj=…)`` wants: each write is one chunk of the request."""

    def __init__(self, connection: UnixConnection) -> None:
        self._connection = connection

    def write(self, data: bytes) -> int:
        """Send ``data``, which may wait for the guest."""
        if data:
            try:
                self._connection.send(b"%x\r\n%b\r\n" % (len(data), data))
            except (BrokenPipeError, ConnectionResetError) as error:
                raise _BrokenOffError from error
        return len(data)


@contextmanager
def get(transport: Transport, ref: str, path: str) -> Iterator[TarReader]:
    """See `Client.get_files`."""
    connection, response = open_stream(
        transport, routes.VM_FILES_GET, {"ref": ref}, query={"path": path}, timeout_s=IDLE_S
    )
    try:
        yield TarReader(transport, response)
    finally:
        response.close()
        connection.close()


@contextmanager
def put(transport: Transport, ref: str, path: str) -> Iterator[TarWriter]:
    """See `Client.put_files`."""
    connection = UnixConnection(transport, IDLE_S)
    try:
        try:
            connection.putrequest(
                routes.VM_FILES_PUT.method,
                target(routes.VM_FILES_PUT, {"path": path}, {"ref": ref}),
            )
            connection.putheader("Content-Type", "application/x-tar")
            connection.putheader("Transfer-Encoding", "chunked")
            connection.endheaders()
        except OSError as error:
            raise unreachable(transport.path, error) from error
        try:
            yield TarWriter(connection)
            connection.send(b"0\r\n\r\n")
        except (_BrokenOffError, BrokenPipeError, ConnectionResetError):
            pass  # the answer below says why
        try:
            connection.answer().read()
        except LOST as error:
            raise unreachable(transport.path, error) from error
    finally:
        connection.close()
