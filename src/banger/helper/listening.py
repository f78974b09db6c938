"""The helper's listening socket: systemd's, or one of its own that only root and one group may connect to."""

from __future__ import annotations

import errno
import grp
import os
import socket
import stat
from contextlib import suppress
from pathlib import Path

from banger.host import paths
from banger.model.errors import HostLacksError, RefusedError

_LISTEN_FDS_START = 3  # sd_listen_fds(3)
_OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH


def inherited() -> socket.socket | None:
    """The socket that systemd passed (socket activation), if it did."""
    if os.environ.get("LISTEN_PID") != str(os.getpid()) or os.environ.get("LISTEN_FDS") != "1":
        return None
    return socket.socket(fileno=_LISTEN_FDS_START)


def group_id(name: str) -> int | None:
    """The number of group ``name``; None for an empty name (root only), HostLacksError if there is no such group."""
    if not name:
        return None
    try:
        return grp.getgrnam(name).gr_gid
    except KeyError as error:
        raise HostLacksError(
            f"there is no group {name}",
            detail="its members may use banger-helper",
            hint=f"sudo groupadd --system {name}",
        ) from error


def bind(path: Path, gid: int | None) -> socket.socket:
    """Listen at ``path`` in a directory that only root can change; a stale socket is replaced, one that answers is not."""
    paths.check_socket_path(path)
    _check_directory(path.parent)
    _clear(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
    try:
        mask = os.umask(0o177)
        try:
            listener.bind(str(path))
        finally:
            os.umask(mask)
        if gid is not None:
            os.chown(path, -1, gid, follow_symlinks=False)
            path.chmod(0o660)
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise HostLacksError(
            f"cannot listen on {path}", detail=str(error), hint=f"ls -ld {path.parent}"
        ) from error
    return listener


def forget(path: Path) -> None:
    """Remove the socket that `bind` made."""
    path.unlink(missing_ok=True)


def _check_directory(directory: Path) -> None:
    """Make it if need be; RefusedError if somebody else could put another file in the socket's place."""
    with suppress(FileExistsError):
        directory.mkdir(mode=0o755, parents=True)
    for each in (directory, *directory.parents):
        status = each.stat()
        sticky = bool(status.st_mode & stat.S_ISVTX) and each != directory
        if status.st_uid not in {0, os.geteuid()} or (
            status.st_mode & _OTHERS_MAY_WRITE and not sticky
        ):
            raise RefusedError(
                f"{each} can be changed by others than root",
                detail="whoever can change it could put a socket of their own in the helper's place",
                hint=f"ls -ld {each}",
            )


def _clear(path: Path) -> None:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(status.st_mode):
        raise RefusedError(
            f"{path} is in the way: it is not a socket", hint=f"move it away: mv {path} {path}.old"
        )
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC) as other:
        try:
            other.connect(str(path))
        except OSError as error:
            if error.errno != errno.ECONNREFUSED:
                raise
        else:
            raise RefusedError(
                f"a banger-helper runs already at {path}", hint=f"ss -xlp src {path}"
            )
    path.unlink()
