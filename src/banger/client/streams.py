"""Running commands and TCP ports of a guest over WebSocket."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from banger.api import routes
from banger.api.frames import MAX_PAYLOAD, FrameType
from banger.client.transport import error_from, target, unreachable
from banger.client.websocket import ClosedError, HandshakeError, WebSocket
from banger.model.clock import Deadline
from banger.model.errors import BangerError

if TYPE_CHECKING:  # needs msgspec, which takes as long to load as all that `vm exec` says
    from banger.api import schema

OPEN_S = 30.0
MAX_MESSAGE_BYTES = 1 << 20
_GOING_AWAY = "the connection to the guest was lost"


def _connect(path: Path, url: str) -> WebSocket:
    """A WebSocket to ``url``."""
    try:
        return WebSocket(path, url, timeout_s=OPEN_S, max_message_bytes=MAX_MESSAGE_BYTES)
    except HandshakeError as error:
        if error.status:
            raise error_from(error.status, error.body) from error
        raise unreachable(path, ConnectionError("it answers no HTTP")) from error
    except OSError as error:
        raise unreachable(path, error) from error


class _Stream:
    """A WebSocket that is closed at the end of its block."""

    def __init__(self, socket: WebSocket) -> None:
        self._socket = socket

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the stream for both sides; idempotent."""
        self._socket.close()

    def _receive(self, timeout_s: float | None = None) -> bytes | None:
        """The next message; None at the end. A text message is the daemon's error and is raised."""
        try:
            message = self._socket.receive(timeout_s)
        except ClosedError:
            return None
        if isinstance(message, str):
            raise error_from(0, message.encode())
        return message

    def _send(self, data: bytes) -> bool:
        """Send one message; False if the other side is gone."""
        try:
            self._socket.send(data)
        except ClosedError:
            return False
        return True


def _text(request: schema.ExecRequest | Mapping[str, object]) -> str:
    if isinstance(request, Mapping):
        return json.dumps(request)
    import msgspec  # noqa: PLC0415  `vm exec` does without

    return msgspec.json.encode(request).decode()


class ExecStream(_Stream):
    """A command that runs in the guest. `send` may be called from other threads while one thread is in `receive`."""

    @classmethod
    def open(
        cls, path: Path, ref: str, request: schema.ExecRequest | Mapping[str, object]
    ) -> ExecStream:
        """Start ``request``, an ExecRequest or its JSON as a mapping, in the VM ``ref``."""
        socket = _connect(path, target(routes.VM_EXEC, None, {"ref": ref}))
        stream = cls(socket)
        with suppress(ClosedError):  # then `receive` has the reason
            stream._socket.send(_text(request))
        return stream

    def send(self, kind: FrameType, payload: bytes = b"") -> bool:
        """Send one frame, waiting for room; False if the command is over."""
        return self._send(bytes([kind]) + payload)

    def write(self, data: bytes) -> bool:
        """Send ``data`` to the command's stdin."""
        parts = range(0, len(data), MAX_PAYLOAD)
        return all(self.send(FrameType.STDIN, data[at : at + MAX_PAYLOAD]) for at in parts)

    def resize(self, rows: int, cols: int) -> bool:
        """Tell the TTY its size."""
        return self.send(FrameType.RESIZE, struct.pack(">HH", rows, cols))

    def signal(self, signo: int) -> bool:
        """Send a signal to the command."""
        return self.send(FrameType.SIGNAL, bytes([signo]))

    def receive(self, timeout_s: float | None = None) -> tuple[FrameType, bytes]:
        """The next frame; EXIT or FAILED is the last. BangerError if the guest is lost before."""
        message = self._receive(timeout_s)
        if message is None:
            raise BangerError(_GOING_AWAY, hint="banger vm list")
        try:
            return FrameType(message[0]), message[1:]
        except (IndexError, ValueError) as error:
            raise BangerError(
                "the guest sent a frame that banger does not know", hint="banger vm health NAME"
            ) from error


@dataclass(frozen=True, slots=True)
class Finished:
    """How a command in the guest ended: status 0 to 255 (128 + signal if it was killed) and its output."""

    status: int
    stdout: bytes
    stderr: bytes


class NotStartedError(BangerError):
    """The command could not be started in the guest; the detail has the guest's words."""

    exit_status = 127


def not_started(payload: bytes) -> NotStartedError:
    """The error for a FAILED frame."""
    words = payload[:2000].decode(errors="replace")
    return NotStartedError(
        "the command could not be started in the VM",
        detail=words,
        hint="banger vm exec NAME -- which PROGRAM",
    )


def exit_status(payload: bytes) -> int:
    """The status in an EXIT frame."""
    return payload[0] if payload else 1


def run_to_end(stream: ExecStream, data: bytes, timeout_s: float) -> Finished:
    """Feed ``data``, collect output until the command ends; TimeoutError after ``timeout_s``."""
    deadline = Deadline.after(timeout_s)

    def feed() -> None:
        if stream.write(data):
            stream.send(FrameType.STDIN_EOF)

    feeder = threading.Thread(target=feed, daemon=True)
    feeder.start()
    collected = {FrameType.STDOUT: bytearray(), FrameType.STDERR: bytearray()}
    try:
        while True:
            kind, payload = stream.receive(deadline.remaining_s)
            if kind in collected:
                collected[kind] += payload
            elif kind is FrameType.FAILED:
                raise not_started(payload)
            elif kind is FrameType.EXIT:
                out, err = (bytes(part) for part in collected.values())
                return Finished(exit_status(payload), out, err)
    finally:
        stream.close()
        feeder.join(10)


class ConsoleStream(_Stream):
    """What a guest writes to its serial console."""

    @classmethod
    def open(cls, path: Path, ref: str, tail_bytes: int) -> ConsoleStream:
        """Listen to the VM ``ref``; an error comes with the first read."""
        url = target(routes.VM_CONSOLE, {"tail_bytes": tail_bytes}, {"ref": ref})
        return cls(_connect(path, url))

    def receive(self, timeout_s: float | None = None) -> bytes | None:
        """The next bytes; None once the VM is gone, TimeoutError if it wrote nothing for so long."""
        return self._receive(timeout_s)


class ProxyStream(_Stream):
    """A byte stream to a TCP port of the guest; no half-close: closing ends both directions."""

    @classmethod
    def open(cls, path: Path, ref: str, port: int) -> ProxyStream:
        """Connect to ``port`` of the VM ``ref``; an error comes with the first read."""
        return cls(_connect(path, target(routes.VM_PROXY, {"port": port}, {"ref": ref})))

    def send(self, data: bytes) -> bool:
        """Send all of ``data``, waiting for room; False if the stream is over."""
        parts = range(0, len(data), MAX_PAYLOAD)
        return all(self._send(data[at : at + MAX_PAYLOAD]) for at in parts)

    def pieces(self) -> Iterator[bytes]:
        """What comes from the guest, until it closes."""
        while (data := self._receive()) is not None:
            yield data
