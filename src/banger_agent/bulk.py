"""Bulk transfers beside the mux: a port of its own carries ``MAGIC nonce`` and then blocks ``length:u32be payload``, the last of them empty.

What lies in the port of an earlier transfer is skipped: the nonce is new for each. One transfer at a time has a port; who finds
it busy, or finds none, goes over the mux.
"""

import struct

from banger_agent import threads
from banger_agent.channel import HostGone, find_port
from banger_agent.http import Gone

HEADER = "Banger-Bulk"
MAGIC = b"\xb4banger-bulk1\r\n\x00"
NONCE_BYTES = 16
MAX_BLOCK = 64 * 1024
COUNT = 4
_LENGTH = struct.Struct(">I")
_HOST_S = 5.0


class Ports:
    """The bulk ports of this guest, each opened when it is first used and then kept.

    ``make(number)`` gives the open port, or None if there is none of that number.
    """

    def __init__(self, make=None):
        self._make = make or _virtio
        self._open = {}
        self._busy = set()
        self._lock = threads.Lock()

    def take(self, request):
        """The `Transfer` for which the request's header asks; None if it does not, or the port is not to be had."""
        number, _, nonce = request.headers.get(HEADER.lower(), "").partition(" ")
        try:
            number, nonce = int(number), bytes.fromhex(nonce)
        except ValueError:
            return None
        if not 0 <= number < COUNT or len(nonce) != NONCE_BYTES:
            return None
        with self._lock:
            if number in self._busy:
                return None
            try:
                if number not in self._open:
                    port = self._make(number)
                    if port is None:
                        return None
                    self._open[number] = port
            except OSError:
                return None
            self._busy.add(number)
        return Transfer(self._open[number], nonce, request.stream, lambda: self._give_back(number))

    def _give_back(self, number):
        with self._lock:
            self._busy.discard(number)


def _virtio(number):
    from banger_agent.channel import Port

    path = find_port("banger.bulk.%d" % number)
    return None if path is None else Port(path)


class Transfer:
    """One transfer over a port; Gone if the host goes meanwhile. ``stream`` is that of the request, whose end ends the transfer."""

    def __init__(self, port, nonce, stream, done):
        self._port = port
        self._mark = MAGIC + nonce
        self._stream = stream
        self.close = done
        self._buffer = bytearray()

    def begin_sending(self):
        """Wait for the host at the port's other end, and send the mark."""
        try:
            self._port.wait_host(_HOST_S)
            self._port.write(self._mark)
        except HostGone:
            raise Gone from None

    def write(self, data):
        """Send ``data`` as blocks."""
        view = memoryview(data)
        while view:
            block = view[:MAX_BLOCK]
            self._put(_LENGTH.pack(len(block)) + block)
            view = view[len(block) :]
        return len(data)

    def finish(self):
        """Send the empty block."""
        self._put(_LENGTH.pack(0))

    def _put(self, data):
        if self._stream.closed:
            raise Gone
        try:
            self._port.write(data)
        except HostGone:
            raise Gone from None

    def chunks(self):
        """What the host sends, piece by piece."""
        self._skip_to_mark()
        while True:
            (left,) = _LENGTH.unpack(self._take(_LENGTH.size))
            if left == 0:
                return
            if left > MAX_BLOCK:
                raise Gone
            yield self._take(left)

    def _skip_to_mark(self):
        try:
            self._port.wait_host(_HOST_S)
        except HostGone:
            raise Gone from None
        while True:
            at = self._buffer.find(self._mark)
            if at >= 0:
                del self._buffer[: at + len(self._mark)]
                return
            del self._buffer[: max(0, len(self._buffer) - len(self._mark) + 1)]
            self._buffer += self._more(hunting=True)

    def _take(self, size):
        while len(self._buffer) < size:
            self._buffer += self._more()
        data = bytes(self._buffer[:size])
        del self._buffer[:size]
        return data

    def _more(self, hunting=False):
        data = self._port.read(lambda: self._stream.closed)
        if not data and (not hunting or self._stream.closed):
            raise Gone
        return data
