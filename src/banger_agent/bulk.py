"""Bulk transfers beside the mux: a port of its own carries ``MAGIC nonce`` and then blocks ``length:u32be payload``, the last of them empty.

What lies in the port of an earlier transfer is skipped: the nonce is new for each. One transfer at a time has a port; who finds
it busy, or finds none, goes over the mux.
"""

import struct
import time

from banger_agent import threads
from banger_agent.channel import HostGone, find_port
from banger_agent.http import Gone

HEADER = "Banger-Bulk"
MAGIC = b"\xb4banger-bulk1\r\n\x00"
NONCE_BYTES = 16
MAX_BLOCK = 256 * 1024 - 4  # with its length it fills whole buffers of the port
COUNT = 4
_LENGTH = struct.Struct(">I")
HEAD = _LENGTH.size
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
        self._early = b""
        self._until = None

    def begin_sending(self):
        """Send the mark; whether there is a host to whom."""
        try:
            self._port.wait_host(_HOST_S)
            self._port.write(self._mark, self._is_over)
        except HostGone:
            return False
        return True

    def begin_receiving(self):
        """Skip what comes before the host's mark; whether it comes in time."""
        self._until = time.monotonic() + _HOST_S
        seen = b""
        try:
            self._port.wait_host(_HOST_S)
            while True:
                at = seen.find(self._mark)
                if at >= 0:
                    self._early = seen[at + len(self._mark) :]
                    self._until = None
                    return True
                if self._is_over():
                    return False
                seen = seen[-len(self._mark) :] + bytes(self._port.read_view(self._is_over))
        except HostGone:
            return False

    def _is_over(self):
        return self._stream.closed or (self._until is not None and time.monotonic() > self._until)

    def send(self, view):
        """Send one block: ``view`` has `HEAD` bytes of room and then at most `MAX_BLOCK` of payload."""
        _LENGTH.pack_into(view, 0, len(view) - HEAD)
        self._put(view)

    def finish(self):
        """Send the empty block."""
        self._put(_LENGTH.pack(0))

    def _put(self, data):
        if self._stream.closed:
            raise Gone
        try:
            self._port.write(data, self._is_over)
        except HostGone:
            raise Gone from None

    def chunks(self):
        """What the host sends, piece by piece: views, each good until the next is asked for."""
        data, left = memoryview(self._early), 0
        while True:
            if not left:
                while len(data) < _LENGTH.size:
                    data = memoryview(b"%b%b" % (bytes(data), self._more()))
                (left,) = _LENGTH.unpack_from(data)
                data = data[_LENGTH.size :]
                if left == 0:
                    return
                if left > MAX_BLOCK:
                    raise Gone
            if not data:
                data = memoryview(self._more())
            piece, data = data[:left], data[left:]
            left -= len(piece)
            yield piece

    def _more(self):
        data = self._port.read_view(self._is_over)
        if not data:
            raise Gone
        return data
