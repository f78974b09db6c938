"""Many streams over one byte channel: the guest's end of the mux (the host's is ``banger.wire.mux``).

A frame is ``stream:u32be type:u8 length:u32be payload``, payload at most 32 KiB. docs/explanation/agent.md says why this is right.

====  =======  ===================================================================================
type  name     meaning
====  =======  ===================================================================================
0     PAD      padding before a SYNC: from here on everything is skipped until the magic
2     OPEN     host: a new stream to the port in the payload (u16be)
3     OPENED   guest: it is there
4     DATA     bytes; at most as many as the receiver gave credit for
5     CREDIT   the receiver has consumed so many bytes (u32be)
6     CLOSE    the stream is over in both directions; the payload says why, if it is an error
====  =======  ===================================================================================

A host that connects sends zeros for longer than a frame, then MAGIC and a nonce of 16 bytes. Whatever frame its
predecessor left half sent ends within the zeros, and zeros read as PAD, so the guest finds the magic from any position. It drops all
streams and answers MAGIC and the nonce; the host skips all that comes before. There is no half-close.

A guest's end that starts while a host is connected (its predecessor has died) says so with bytes that are all ones, for longer than a
frame. Wherever in a frame the host is, it soon reads a length that none has, so it connects anew.
"""

import struct
from collections import deque

from banger_agent import threads
from banger_agent.channel import HostGone

MAGIC = b"\xb4banger-mux-1\r\n\x00"
NONCE_BYTES = 16
HEADER = struct.Struct(">IBI")
PAD, OPEN, OPENED, DATA, CREDIT, CLOSE = 0, 2, 3, 4, 5, 6
MAX_PAYLOAD = 32 * 1024
WINDOW = 256 * 1024
MAX_STREAMS = 200  # a command takes four descriptors, and a service has 1024
NONSENSE = b"\xff" * (MAX_PAYLOAD + 2 * HEADER.size)


class Closed(Exception):
    """The stream is over; the text says why, if it is an error."""


class Stream:
    """One stream, with blocking calls for the thread that serves it."""

    def __init__(self, mux, number, session):
        self._mux = mux
        self.number = number
        self.session = session
        self._condition = threads.Condition()
        self._chunks = deque()
        self._buffered = 0
        self._credit = WINDOW
        self._consumed = 0
        self._closed = None

    def accept(self):
        """Tell the host that its stream is there."""
        self._mux.send(self, OPENED)

    def recv(self, limit=65536):
        """Some bytes; b"" once the host has closed the stream and everything was read."""
        with self._condition:
            while not self._chunks and self._closed is None:
                self._condition.wait()
            if not self._chunks:
                return b""
            chunk = self._chunks.popleft()
            if len(chunk) > limit:
                self._chunks.appendleft(chunk[limit:])
                chunk = chunk[:limit]
            self._buffered -= len(chunk)
            self._consumed += len(chunk)
            give = self._consumed if self._consumed >= WINDOW // 4 else 0
            self._consumed -= give
        if give:
            try:
                self._mux.send(self, CREDIT, struct.pack(">I", give))
            except Closed:
                pass  # what has come can still be read
        return chunk

    def sendall(self, data):
        """Send all of ``data``, waiting for credit; Closed if the stream ends first."""
        view = memoryview(data)
        while view:
            with self._condition:
                while self._credit == 0 and self._closed is None:
                    self._condition.wait()
                if self._closed is not None:
                    raise Closed(self._closed)
                size = min(len(view), self._credit, MAX_PAYLOAD)
                self._credit -= size
            self._mux.send(self, DATA, view[:size])
            view = view[size:]

    def close(self, why=""):
        """End the stream; idempotent."""
        if self.drop(why):
            self._mux.forget(self)
            try:
                self._mux.send(self, CLOSE, why.encode("utf-8", "replace")[:1024])
            except Closed:
                pass  # the host knows

    @property
    def closed(self):
        """Whether either side has ended it."""
        return self._closed is not None

    def deliver(self, data):
        """The reader's: bytes have come. False if the host broke its credit."""
        with self._condition:
            self._buffered += len(data)
            if self._buffered > WINDOW:
                return False
            if data:
                self._chunks.append(data)
                self._condition.notify_all()
        return True

    def add_credit(self, amount):
        """The reader's: the host has consumed."""
        with self._condition:
            self._credit = min(self._credit + amount, WINDOW)
            self._condition.notify_all()

    def drop(self, why):
        """The stream is over; whether that is news."""
        with self._condition:
            if self._closed is not None:
                return False
            self._closed = why
            self._condition.notify_all()
        return True


class Mux:
    """Reads frames from ``link`` (`channel.Port`) and serves each new stream by ``serve(stream, port)`` in a thread of its own."""

    def __init__(self, link, serve):
        self._link = link
        self._serve = serve
        self._streams = {}
        self._session = 0  # of the host that synchronised last; streams of an earlier one may write nothing any more
        self._lock = threads.Lock()
        self._write_lock = threads.Lock()
        self._buffer = bytearray()

    def send(self, stream, kind, payload=b""):
        """Write one frame; Closed if the host of that stream is gone."""
        with self._write_lock:
            if stream.session != self._session:
                raise Closed("the host has connected anew")
            try:
                self._link.write(HEADER.pack(stream.number, kind, len(payload)) + payload)
            except HostGone:
                raise Closed("the host has gone") from None

    def forget(self, stream):
        """A stream is over on our side."""
        with self._lock:
            if self._streams.get(stream.number) is stream:
                del self._streams[stream.number]

    def run(self):
        """Serve until ``link.read`` gives None."""
        self._announce()
        hunting = True
        while True:
            data = self._link.read()
            if data is None:
                self._drop_all()
                return
            if not data:  # the host has gone: what it left half sent is of no use
                self._buffer.clear()
                self._drop_all()
                hunting = True
                continue
            self._buffer += data
            hunting = self._parse(hunting)

    def _announce(self):
        """Whoever is connected already spoke to a predecessor of ours."""
        try:
            self._link.write(NONSENSE)
        except HostGone:
            pass  # as it should be

    def _parse(self, hunting):
        while True:
            if hunting:
                if not self._synchronise():
                    return True
                hunting = False
            if len(self._buffer) < HEADER.size:
                return False
            number, kind, length = HEADER.unpack_from(self._buffer)
            if kind == PAD or length > MAX_PAYLOAD:
                hunting = True
                continue
            if len(self._buffer) < HEADER.size + length:
                return False
            payload = bytes(self._buffer[HEADER.size : HEADER.size + length])
            del self._buffer[: HEADER.size + length]
            self._handle(number, kind, payload)

    def _synchronise(self):
        at = self._buffer.find(MAGIC)
        if at < 0:
            del self._buffer[: max(0, len(self._buffer) - len(MAGIC) + 1)]
            return False
        end = at + len(MAGIC) + NONCE_BYTES
        if len(self._buffer) < end:
            del self._buffer[:at]
            return False
        answer = bytes(self._buffer[at:end])
        del self._buffer[:end]
        self._drop_all()
        with self._write_lock:
            self._session += 1
            try:
                self._link.write(answer)
            except HostGone:
                pass  # the next one synchronises too
        return True

    def _drop_all(self):
        with self._lock:
            streams, self._streams = list(self._streams.values()), {}
        for stream in streams:
            stream.drop("the host has gone")

    def _handle(self, number, kind, payload):
        stream = self._streams.get(number)
        if kind == OPEN and len(payload) == 2:
            self._open(number, int.from_bytes(payload, "big"))
        elif stream is None:
            return  # a frame that crossed our CLOSE
        elif kind == DATA:
            if not stream.deliver(payload):
                stream.close("more data than credit")
        elif kind == CREDIT and len(payload) == 4:
            stream.add_credit(int.from_bytes(payload, "big"))
        elif kind == CLOSE:
            stream.drop(payload.decode("utf-8", "replace"))
            self.forget(stream)

    def _open(self, number, port):
        stream = Stream(self, number, self._session)
        with self._lock:
            refused = number in self._streams or len(self._streams) >= MAX_STREAMS
            if not refused:
                self._streams[number] = stream
        try:
            if not refused:
                threads.start(self._serve, stream, port)
                return
        except RuntimeError:  # no more threads
            self.forget(stream)
        try:
            self.send(stream, CLOSE, b"too many streams")
        except Closed:
            pass  # nobody is left to be told
