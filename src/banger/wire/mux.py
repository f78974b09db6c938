"""Many streams over one byte channel: the host's end of the mux. The format is stated in ``banger_agent.mux``, whose twin this is.

`Mux.connect` synchronises with whatever state the guest's end is in: zeros for longer than a frame, then MAGIC and a nonce; the guest
answers MAGIC and the nonce, and everything before that is skipped. The guest is not trusted: it can break its own streams,
never make the host buffer more than a window for each.
"""

from __future__ import annotations

import asyncio
import secrets
import struct
from collections import deque
from contextlib import suppress
from pathlib import Path
from typing import Final

from banger.wire.http1 import StreamEndedError

MAGIC: Final = b"\xb4banger-mux-1\r\n\x00"
NONCE_BYTES: Final = 16
HEADER: Final = struct.Struct(">IBI")
OPEN, OPENED, DATA, CREDIT, CLOSE = 2, 3, 4, 5, 6
MAX_PAYLOAD: Final = 32 * 1024
WINDOW: Final = 256 * 1024
MAX_STRAYS: Final = 1 << 16
"""So many frames in a row may make no sense: more than can cross the end of a stream, of any agent that means well."""
TURN: Final = 64
"""Frames, after which others have their turn: what is in the buffer already is read without waiting."""
_CALL_AGAIN_S: Final = 1.0
_PADDING: Final = bytes(MAX_PAYLOAD + HEADER.size)


class MuxClosedError(StreamEndedError):
    """The stream or the whole channel is over; the text says why."""


class MuxStream:
    """One stream to a port of the guest."""

    def __init__(self, mux: Mux, number: int) -> None:
        self._mux = mux
        self._number = number
        self._chunks: deque[bytes] = deque()
        self._buffered = 0
        self._consumed = 0
        self._credit = WINDOW
        self._closed: str | None = None
        self._changed = asyncio.Event()
        self.opened: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def why(self) -> str:
        """Why it is over, as far as the guest said so."""
        return self._closed or ""

    async def read(self, limit: int = 65536) -> bytes:
        """Some bytes; empty once the guest has closed the stream and all was read."""
        while not self._chunks and self._closed is None:
            self._changed.clear()
            await self._changed.wait()
        if not self._chunks:
            return b""
        chunk = self._chunks.popleft()
        if len(chunk) > limit:
            self._chunks.appendleft(chunk[limit:])
            chunk = chunk[:limit]
        self._buffered -= len(chunk)
        self._consumed += len(chunk)
        if self._consumed >= WINDOW // 4 and self._closed is None:
            consumed, self._consumed = self._consumed, 0
            with suppress(ConnectionError):
                await self._mux.send(self._number, CREDIT, struct.pack(">I", consumed))
        return chunk

    async def write(self, data: bytes) -> None:
        """Send all of ``data``, waiting for credit; MuxClosedError if the stream ends first."""
        view = memoryview(data)
        while view:
            while self._credit == 0 and self._closed is None:
                self._changed.clear()
                await self._changed.wait()
            if self._closed is not None:
                raise MuxClosedError(self._closed or "the guest has closed the stream")
            size = min(len(view), self._credit, MAX_PAYLOAD)
            self._credit -= size
            await self._mux.send(self._number, DATA, bytes(view[:size]))
            view = view[size:]

    async def close(self) -> None:
        """End the stream in both directions; idempotent."""
        if self._closed is None:
            self.end("closed here")
            self._mux.forget(self._number)
            with suppress(ConnectionError):
                await self._mux.send(self._number, CLOSE)

    def deliver(self, data: bytes) -> bool:
        """Bytes have come; False if the guest sent more than it may. Never none: they would be kept without end, and read as an end."""
        self._buffered += len(data)
        if self._buffered > WINDOW:
            return False
        self._chunks.append(data)
        self._changed.set()
        return True

    def add_credit(self, amount: int) -> bool:
        """The guest has consumed so much; False if that cannot be, for nothing was sent."""
        before = self._credit
        self._credit = min(before + amount, WINDOW)
        self._changed.set()
        return self._credit > before

    def end(self, why: str) -> None:
        """The stream is over; what was received can still be read."""
        if self._closed is None:
            self._closed = why
        if not self.opened.done():
            self.opened.set_exception(
                MuxClosedError(why or "nobody listens on that port of the guest")
            )
            self.opened.exception()  # seen: an opener that was cancelled does not come back for it
        self._changed.set()


class Mux:
    """A synchronised channel. `connect` makes one; it is of no use any more once `closed` is set."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self._streams: dict[int, MuxStream] = {}
        self._next = 0
        self._lock = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None
        self.closed = asyncio.Event()

    @classmethod
    async def connect(cls, path: Path) -> Mux:
        """Connect to the Unix socket ``path`` and wait until the guest has answered; the caller sets the deadline. OSError."""
        reader, writer = await asyncio.open_unix_connection(path, limit=1 << 20)
        mux = cls(reader, writer)
        try:
            await _synchronise(reader, writer)
        except asyncio.IncompleteReadError:  # an EOFError: none of those that callers wait for
            await mux.close()
            raise MuxClosedError("the channel to the guest was closed") from None
        except BaseException:
            await mux.close()
            raise
        mux._task = asyncio.create_task(mux._read(), name=f"mux {path.parent.name}")
        return mux

    async def open(self, port: int) -> MuxStream:
        """A stream to ``port`` of the guest (1024 is its agent); MuxClosedError if it refuses."""
        self._next = self._next % 0xFFFFFFFF + 1
        stream = self._streams[self._next] = MuxStream(self, self._next)
        try:
            await self.send(self._next, OPEN, port.to_bytes(2, "big"))
            await stream.opened
        except BaseException:
            await stream.close()
            raise
        return stream

    async def send(self, number: int, kind: int, payload: bytes = b"") -> None:
        """Write one frame."""
        if self.closed.is_set():
            raise MuxClosedError("the channel to the guest is closed")
        self._writer.write(HEADER.pack(number, kind, len(payload)) + payload)
        async with self._lock:
            await self._writer.drain()

    def forget(self, number: int) -> None:
        """A stream is over on our side."""
        self._streams.pop(number, None)

    async def _read(self) -> None:
        why = "the channel to the guest was closed"
        strays = frames = 0
        try:
            while True:
                number, kind, length = HEADER.unpack(await self._reader.readexactly(HEADER.size))
                if length > MAX_PAYLOAD:
                    why = "the guest's agent sent nonsense"
                    return
                payload = await self._reader.readexactly(length)
                strays = 0 if await self._handle(number, kind, payload) else strays + 1
                if strays > MAX_STRAYS:
                    why = "the guest's agent sends frames without end"
                    return
                frames += 1
                if frames % TURN == 0:
                    await asyncio.sleep(0)
        except (asyncio.IncompleteReadError, OSError):
            pass  # the VMM has gone, or close was called: said below
        finally:
            self.closed.set()
            for stream in self._streams.values():
                stream.end(why)
            self._streams.clear()
            self._writer.close()

    async def _handle(self, number: int, kind: int, payload: bytes) -> bool:
        """Do what a frame says; False if it says nothing: of a stream that is not there (it may have crossed our CLOSE), or without effect."""
        stream = self._streams.get(number)
        if stream is None:
            return False
        if kind == OPENED and not stream.opened.done():
            stream.opened.set_result(None)
        elif kind == DATA and payload:
            if not stream.deliver(payload):
                await stream.close()
        elif kind == CREDIT and len(payload) == 4:
            return stream.add_credit(int.from_bytes(payload, "big"))
        elif kind == CLOSE:
            stream.end(payload[:1024].decode(errors="replace"))
            self.forget(number)
        else:
            return False
        return True

    async def close(self) -> None:
        """End the channel and all its streams."""
        self.closed.set()
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


async def _synchronise(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Call until the guest answers the last call.

    An answer can be lost: a guest's kernel may hand over our bytes before it knows that somebody is connected, and then refuses to send.
    Each call has a nonce of its own, so that a late answer to an earlier one is not taken for the end of what the guest does with it.
    """
    wait_s = _CALL_AGAIN_S
    while True:
        mark = MAGIC + secrets.token_bytes(NONCE_BYTES)
        writer.write(_PADDING + mark)
        await writer.drain()
        with suppress(TimeoutError):
            async with asyncio.timeout(wait_s):
                await _skip_to(reader, mark)
                return
        wait_s *= 2


async def _skip_to(reader: asyncio.StreamReader, mark: bytes) -> None:
    """Read and drop everything up to and including ``mark``."""
    tail = b""
    while True:
        # Byte-exact: what follows the mark belongs to the first frame.
        chunk = await reader.readexactly(len(mark) - len(tail)) if len(tail) < len(mark) else b""
        tail += chunk
        if tail == mark:
            return
        at = tail.find(mark[:1], 1)
        tail = tail[at:] if at > 0 else b""
        while tail and not mark.startswith(tail):
            at = tail.find(mark[:1], 1)
            tail = tail[at:] if at > 0 else b""
