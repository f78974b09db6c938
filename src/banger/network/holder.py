"""The holder: a small process that keeps the user and network namespace of one daemon's VMs, and opens things inside.

It outlives the daemon and decides nothing: over its control socket (SEQPACKET, one JSON request and one reply a message, descriptors by
SCM_RIGHTS) it gives out descriptors that belong to its namespaces, and the daemon does the rest with them. It keeps no copy. Requests:

    {"op": "hello"}                -> {"ok": true, "pid": N, "protocol": 3}
    {"op": "namespaces"}           -> descriptors of its user and its network namespace
    {"op": "route"}                -> a NETLINK_ROUTE socket
    {"op": "tcp"}                  -> an unconnected TCP socket
    {"op": "udp"}                  -> an unconnected UDP socket                 (protocol 2)
    {"op": "netfilter"}            -> a NETLINK_NETFILTER socket                (protocol 2)
    {"op": "tap", "name": "tap7"}  -> a new TAP (IFF_TAP|IFF_NO_PI|IFF_VNET_HDR), gone when the last descriptor is closed
    {"op": "uplink", "name": "x"}  -> {"ok": true}: a persistent TAP that another process opens by name (the uplink's, Firecracker),
                                      or that waits for a VM; names with "-"        (protocol 3)
    {"op": "lifeline"}             -> the read end of a pipe that hangs up when the holder ends
    {"op": "stop"}                 -> {"ok": true}, and it ends

Imports are few on purpose: it starts in 15 ms and idles in 9 MB.
"""

from __future__ import annotations

import json
import os
import select
import socket
import struct
import sys
from collections.abc import Callable
from typing import Any

from banger.host.tun import VNET_HEADER, open_tap

PROTOCOL = 3
MAX_REQUEST_BYTES = 1024
MAX_CLIENTS = 32
NETFILTER = 12  # NETLINK_NETFILTER
_NAMES = "abcdefghijklmnopqrstuvwxyz0123456789-"

Answer = tuple[dict[str, Any], list[int]]


class Holder:
    """Answers requests on ``listener`` until asked to stop. As root of its own user namespace it sees its maker as uid 0."""

    def __init__(self, listener: socket.socket) -> None:
        self._listener = listener
        self._clients: dict[int, socket.socket] = {}
        self._lifelines: list[int] = []
        self._stopping = False
        self._operations: dict[str, Callable[[dict[str, Any]], Answer]] = {
            "hello": lambda _: ({"pid": os.getpid(), "protocol": PROTOCOL}, []),
            "namespaces": lambda _: ({}, _open_namespaces()),
            "route": lambda _: ({}, [_socket(socket.AF_NETLINK, socket.SOCK_RAW)]),
            "tcp": lambda _: ({}, [_socket(socket.AF_INET, socket.SOCK_STREAM)]),
            "udp": lambda _: ({}, [_socket(socket.AF_INET, socket.SOCK_DGRAM)]),
            "netfilter": lambda _: ({}, [_socket(socket.AF_NETLINK, socket.SOCK_RAW, NETFILTER)]),
            "tap": lambda request: ({}, [open_tap(_name(request), flags=VNET_HEADER)]),
            "uplink": _uplink,
            "lifeline": self._lifeline,
            "stop": self._stop,
        }

    def serve(self) -> None:
        """Run until stopped; without requests it uses no CPU."""
        poll = select.poll()
        poll.register(self._listener, select.POLLIN)
        while not self._stopping:
            for descriptor, _ in poll.poll():
                if descriptor == self._listener.fileno():
                    self._accept(poll)
                elif not self._converse(self._clients[descriptor]):
                    poll.unregister(descriptor)
                    self._clients.pop(descriptor).close()

    def _accept(self, poll: select.poll) -> None:
        client, _ = self._listener.accept()
        credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        uid = struct.unpack("=iII", credentials)[1]
        if uid != os.geteuid() or len(self._clients) >= MAX_CLIENTS:
            client.close()
            return
        client.setblocking(False)  # noqa: FBT003  the standard library's signature
        self._clients[client.fileno()] = client
        poll.register(client, select.POLLIN)

    def _converse(self, client: socket.socket) -> bool:
        """Answer one request; False if the client is gone or makes no sense."""
        try:
            data, _ancillary, flags, _ = client.recvmsg(MAX_REQUEST_BYTES)
            if not data or flags & socket.MSG_TRUNC:
                return False
            reply, descriptors = self._answer(data)
            try:
                socket.send_fds(client, [json.dumps(reply).encode()], descriptors)
            finally:
                for descriptor in descriptors:
                    os.close(descriptor)
        except OSError:
            return False
        return True

    def _answer(self, data: bytes) -> Answer:
        try:
            request = json.loads(data)
            reply, descriptors = self._operations[request["op"]](request)
        except OSError as error:
            return {"ok": False, "errno": error.errno, "error": str(error)}, []
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            return {"ok": False, "errno": 0, "error": f"bad request: {error!r}"[:200]}, []
        return {"ok": True, **reply}, descriptors

    def _lifeline(self, request: dict[str, Any]) -> Answer:
        del request
        read_end, write_end = os.pipe()
        while self._lifelines:  # one uplink at a time: an earlier one is to end
            os.close(self._lifelines.pop())
        self._lifelines.append(write_end)
        return {}, [read_end]

    def _stop(self, request: dict[str, Any]) -> Answer:
        del request
        self._stopping = True
        return {}, []


def _name(request: dict[str, Any]) -> str:
    name = request["name"]
    if not isinstance(name, str) or not 1 <= len(name) <= 15 or set(name) - set(_NAMES):
        raise ValueError("name")
    return name


def _uplink(request: dict[str, Any]) -> Answer:
    os.close(open_tap(_name(request), persist=True))
    return {}, []


def _socket(family: int, kind: int, protocol: int = 0) -> int:
    return socket.socket(family, kind | socket.SOCK_CLOEXEC, protocol).detach()


def _open_namespaces() -> list[int]:
    user = os.open("/proc/self/ns/user", os.O_RDONLY | os.O_CLOEXEC)
    try:
        return [user, os.open("/proc/self/ns/net", os.O_RDONLY | os.O_CLOEXEC)]
    except BaseException:
        os.close(user)
        raise


def main() -> None:
    """Serve on the listening socket whose number is the first argument."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    os.set_inheritable(listener.fileno(), False)  # noqa: FBT003  the standard library's signature
    os.umask(0o077)
    Holder(listener).serve()
