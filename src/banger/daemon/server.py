"""The HTTP server on a Unix socket that only its owner and root may use.

The socket lies in a directory of mode 0700, is made with mode 0600 before it listens, and the kernel is asked for the
peer's uid on every connection (SO_PEERCRED).
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import stat
import struct
from contextlib import suppress
from pathlib import Path
from typing import Any

import uvicorn
from litestar import Litestar
from uvicorn.protocols.http.h11_impl import H11Protocol

from banger.host import fs
from banger.model.compat import override
from banger.model.errors import HostLacksError, RefusedError

log = logging.getLogger(__name__)
MAX_SOCKET_PATH_BYTES = 107  # sun_path of unix(7) less the final zero
LISTEN_FDS_START = 3  # sd_listen_fds(3)
DRAIN_S = 3


def bind(path: Path) -> socket.socket:
    """A listening socket at ``path``; a stale one is replaced. The caller holds the lock, so nobody else can listen there."""
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise HostLacksError(
            f"socket path {path} is too long",
            detail=f"it has {len(os.fsencode(path))} bytes, the kernel allows {MAX_SOCKET_PATH_BYTES}",
            hint="set BANGER_RUNTIME_DIR to a shorter directory",
        )
    fs.make_private_dir(path.parent)
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.lstat().st_mode):
            raise RefusedError(
                f"{path} is in the way: it is not a socket",
                hint=f"move it away: mv {path} {path}.old",
            )
        path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        listener.listen(128)
    except OSError as error:
        listener.close()
        raise HostLacksError(
            f"cannot listen on {path}",
            detail=errno.errorcode.get(error.errno or 0, str(error)),
            hint=f"ls -ld {path.parent}",
        ) from error
    return listener


def inherited() -> socket.socket | None:
    """The socket that systemd passed (socket activation), if it did."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=LISTEN_FDS_START)


def peer_uid(connection: Any) -> int:  # noqa: ANN401  a socket or asyncio's TransportSocket
    """The uid of the process at the other end, as the kernel knows it."""
    credentials = connection.getsockopt(
        socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")
    )
    return int(struct.unpack("3i", credentials)[1])


class OwnersOnly(H11Protocol):
    """Drops connections of other users before they are read."""

    @override
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Ask the kernel who is there."""
        uid = peer_uid(transport.get_extra_info("socket"))
        if uid in {0, os.geteuid()}:
            super().connection_made(transport)
        else:
            log.warning("connection of uid %d refused", uid)
            transport.abort()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Only a connection that was let in has state to drop."""
        if self.transport is not None:
            super().connection_lost(exc)

    @override
    def eof_received(self) -> None:
        """As above."""
        if self.transport is not None:
            super().eof_received()


class Server(uvicorn.Server):
    """Sleeps until it is told to end: uvicorn's own loop wakes up ten times a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._ended = asyncio.Event()

    def end(self) -> None:
        """Take no more connections, let those that are open finish for a while, then return from `serve`."""
        self.should_exit = True
        self._ended.set()

    @override
    async def main_loop(self) -> None:
        """Until `end`."""
        await self._ended.wait()


def make_server(app: Litestar) -> Server:
    """A server for `bind`'s socket; signals are handled by `banger.daemon.lifecycle`."""
    config = uvicorn.Config(
        app,
        http=OwnersOnly,
        ws="websockets-sansio",
        ws_max_size=1 << 20,
        ws_per_message_deflate=False,
        lifespan="off",
        log_config=None,
        access_log=False,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
        date_header=False,  # would have to be kept up to date
    )
    return Server(config)
