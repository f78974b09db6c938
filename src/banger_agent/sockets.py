"""Sockets in the place of virtio-serial: a Unix socket that carries the mux or a bulk transfer (tests), and listeners of which
each connection is one HTTP request (vsock; a Unix socket in tests).
"""

import os
import select
import socket
import time

from banger_agent import threads
from banger_agent.channel import HostGone
from banger_agent.mux import Closed


class UnixPort:
    """As `channel.Port`, over a listening Unix socket with one client at a time."""

    def __init__(self, path):
        self._listener = _listen_unix(path)
        self._client = None

    def _accept(self, give_up):
        self._listener.settimeout(None if give_up is None else 0.2)
        while self._client is None:
            try:
                client, _ = self._listener.accept()
            except OSError:  # a time-out, by a name that differs between versions
                if give_up is None or give_up():
                    return False
            else:
                client.settimeout(None)
                self._client = client
        return True

    def read(self):
        """As `channel.Port.read`."""
        return self.read_view()

    def read_view(self, give_up=None):
        """As `channel.Port.read_view`."""
        if not self._accept(give_up):
            return b""
        poll = select.poll()
        poll.register(self._client, select.POLLIN)
        while give_up is not None and not poll.poll(200):
            if give_up():
                return b""
        try:
            data = self._client.recv(65536)
        except OSError:
            data = b""
        if not data:
            self._drop()
        return data

    def _drop(self):
        client, self._client = self._client, None
        if client is not None:
            try:
                client.shutdown(socket.SHUT_RDWR)  # wakes a thread that writes
            except OSError:
                pass  # not connected any more
            client.close()

    def write(self, data, _give_up=None):
        """As `channel.Port.write`; only the host's end of the socket ends it early."""
        client = self._client
        if client is None:
            raise HostGone
        try:
            client.sendall(data)
        except OSError:
            raise HostGone from None

    def wait_host(self, timeout_s):
        """As `channel.Port.wait_host`."""
        self._drop()
        end = time.monotonic() + timeout_s
        if not self._accept(lambda: time.monotonic() > end):
            raise HostGone


class SocketStream:
    """A connection with the interface of `mux.Stream`."""

    def __init__(self, connection):
        self._connection = connection
        self.closed = False

    def accept(self):
        """A connection needs no answer."""

    def recv(self, limit=65536):
        try:
            data = self._connection.recv(limit)
        except OSError:
            data = b""
        self.closed = self.closed or not data
        return data

    def sendall(self, data):
        try:
            self._connection.sendall(data)
        except OSError:
            self.closed = True
            raise Closed("the host has gone") from None

    def close(self, _why=""):
        self.closed = True
        try:
            self._connection.shutdown(socket.SHUT_RDWR)  # wakes a thread that reads
        except OSError:
            pass  # not connected any more
        self._connection.close()


def _listen_unix(path):
    """A listener at ``path``, which appears there only when it can be connected to."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(path + "-")
    listener.listen(128)
    os.rename(path + "-", path)
    return listener


def listen_vsock(port):
    """A listener on ``port`` of AF_VSOCK, for the host only."""
    listener = socket.socket(socket.AF_VSOCK)
    listener.bind((socket.VMADDR_CID_ANY, port))
    listener.listen(128)
    return listener


def serve_unix(path, serve):
    """Serve each connection to ``path`` by ``serve(stream)``; does not return."""
    _serve(_listen_unix(path), serve, lambda _peer: True)


def serve_vsock(port, serve):
    """Serve each connection of the host to ``port`` by ``serve(stream)``; does not return."""
    _serve(listen_vsock(port), serve, lambda peer: peer[0] == socket.VMADDR_CID_HOST)


def _serve(listener, serve, welcome):
    while True:
        try:
            connection, peer = listener.accept()
        except OSError:
            time.sleep(0.1)  # no descriptors left: they come back when requests end
            continue
        if welcome(peer):
            threads.start(serve, SocketStream(connection))
        else:
            connection.close()
