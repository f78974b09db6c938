"""A WebSocket that is written and read at the same time: the protocol is ``websockets``' own, the input and output are ours.

``websockets.sync`` holds one lock while a send blocks, and needs the same lock to read. Here everything may block: a command in a guest
does not read before its output is read. With both sides full, its client would never read again.
"""

from __future__ import annotations

import errno
import select
import socket
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

from websockets.client import ClientProtocol
from websockets.frames import Frame, Opcode
from websockets.http11 import Response
from websockets.protocol import State
from websockets.uri import WebSocketURI

from banger.client.transport import open_socket

_RECEIVE_BYTES = 1 << 16


class ClosedError(Exception):
    """The connection is over."""


class HandshakeError(Exception):
    """The server did not upgrade; ``status`` is 0 if what it said is no HTTP."""

    def __init__(self, status: int, body: bytes) -> None:
        super().__init__(f"the server answered {status}")
        self.status = status
        self.body = body


class WebSocket:
    """Connected to the Unix socket ``path``. Any thread may send, one at a time may receive."""

    def __init__(self, path: Path, url: str, *, timeout_s: float, max_message_bytes: int) -> None:
        """Shake hands; HandshakeError, OSError (TimeoutError is one)."""
        uri = WebSocketURI(
            secure=False,
            host="localhost",
            port=80,
            path=url,
            query="",
            username=None,
            password=None,
        )
        self._protocol = ClientProtocol(uri, max_size=max_message_bytes)
        self._state = threading.Lock()  # held for as long as the protocol computes
        self._output = (
            threading.Lock()
        )  # held for as long as the server takes to read; taken first of the two
        self._outgoing: deque[bytes] = (
            deque()
        )  # messages come in with both held: a reader alone adds replies to pings
        self._incoming: deque[Frame] = deque()
        self._parts: list[bytes] = []
        self._text = False
        self._socket = open_socket(path)
        try:
            self._socket.settimeout(timeout_s)
            self._shake_hands()
            self._socket.settimeout(None)
        except BaseException:
            self._socket.close()
            raise

    def _shake_hands(self) -> None:
        self._protocol.send_request(self._protocol.connect())
        self._collect()
        self._flush()
        while True:
            data = self._socket.recv(_RECEIVE_BYTES)
            self._protocol.receive_data(data) if data else self._protocol.receive_eof()
            for event in self._protocol.events_received():
                if isinstance(event, Response) and self._protocol.handshake_exc is not None:
                    raise HandshakeError(event.status_code, bytes(event.body or b""))
                if isinstance(event, Frame):
                    self._incoming.append(event)
            if self._protocol.state is not State.CONNECTING:
                return
            if not data or self._protocol.handshake_exc is not None:
                raise HandshakeError(0, b"")

    def send(self, message: bytes | str) -> None:
        """One message; waits until it is on its way. ClosedError."""
        with self._output:
            with self._state:
                if self._protocol.state is not State.OPEN:
                    raise ClosedError
                if isinstance(message, str):
                    self._protocol.send_text(message.encode())
                else:
                    self._protocol.send_binary(message)
                self._collect()
            try:
                while self._outgoing:
                    self._socket.sendall(self._outgoing.popleft())
            except OSError as error:
                raise ClosedError from error
        self._flush()  # what a reader left while this one was at it

    def receive(self, timeout_s: float | None = None) -> bytes | str:
        """The next message; ClosedError, or TimeoutError after ``timeout_s`` seconds without one that is complete."""
        while True:
            while self._incoming:
                frame = self._incoming.popleft()
                if frame.opcode in {Opcode.TEXT, Opcode.BINARY, Opcode.CONT}:
                    if frame.opcode is not Opcode.CONT:
                        self._text = frame.opcode is Opcode.TEXT
                    self._parts.append(bytes(frame.data))
                    if frame.fin:
                        whole, self._parts = b"".join(self._parts), []
                        return whole.decode(errors="replace") if self._text else whole
            if self._protocol.state is not State.OPEN:
                raise ClosedError
            self._read(timeout_s)

    def _read(self, timeout_s: float | None) -> None:
        poll = select.poll()
        try:
            poll.register(self._socket, select.POLLIN)
            if not poll.poll(None if timeout_s is None else max(0.0, timeout_s) * 1000):
                raise TimeoutError("no message in time")
            data = self._socket.recv(_RECEIVE_BYTES)
        except (ValueError, ConnectionError) as error:  # ValueError: closed by us
            raise ClosedError from error
        except OSError as error:
            if error.errno == errno.EBADF:  # closed by us while we waited
                raise ClosedError from error
            raise
        if not data:
            raise ClosedError
        with self._state:
            self._protocol.receive_data(data)
            self._incoming += [e for e in self._protocol.events_received() if isinstance(e, Frame)]
            self._collect()
        self._flush()

    def _collect(self) -> None:
        """Take what the protocol wants to be sent, in its order; the caller has the state's lock."""
        self._outgoing += [data for data in self._protocol.data_to_send() if data]

    def _flush(self) -> None:
        """Send replies as far as nobody has to wait for it; whoever sends next takes the rest along."""
        while self._outgoing and self._output.acquire(blocking=False):
            data = b""
            try:
                data = self._outgoing.popleft()
                sent = self._socket.send(data, socket.MSG_DONTWAIT)
                if sent < len(data):
                    self._outgoing.appendleft(data[sent:])
            except BlockingIOError:
                self._outgoing.appendleft(data)
                return
            except (IndexError, OSError):  # sent by another; closed, and `receive` says so
                return
            finally:
                self._output.release()

    def close(self) -> None:
        """End the connection for both sides, and wake whoever sends or receives; idempotent."""
        with self._state:
            if self._protocol.state is State.OPEN:
                self._protocol.send_close()
                self._collect()
        self._flush()
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
