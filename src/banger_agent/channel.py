"""The byte channel to the host: a virtio-serial port. What tests use in its place is in `banger_agent.sockets`."""

import os
import select
import time

_CLASS = "/sys/class/virtio-ports"
_PIECE = 4096  # the kernel gives no more of a port in one read; many reads in one call are many times faster
_PIECES = 32
_GRACE_S = 1.0


class HostGone(Exception):
    """Nobody is connected at the host's end."""


def find_port(name, directory=_CLASS, devices="/dev"):
    """The device of the virtio-serial port ``name``; None if there is none (yet)."""
    try:
        entries = os.listdir(directory)
    except FileNotFoundError:
        return None
    for entry in entries:
        try:
            with open("%s/%s/name" % (directory, entry)) as file:
                if file.read().strip() == name:
                    return "%s/%s" % (devices, entry)
        except FileNotFoundError:
            continue  # taken away while we looked
    return None


class Port:
    """An open virtio-serial port; one thread reads and one at a time writes.

    The port counts as hung up for as long as no host is connected, so that `poll` cannot wait for one; an edge of `epoll` can.
    The kernel learns of hosts that come and go later than of their bytes: a new host's may be here while the port still counts
    as hung up, or only then begins to. So one is gone only when the port has been hung up for a while and nothing came.
    """

    def __init__(self, path):
        self._fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        self._edges = select.epoll()
        self._edges.register(self._fd, select.EPOLLIN | select.EPOLLET)
        self._room = select.poll()
        self._room.register(self._fd, select.POLLOUT)
        self._heard = False
        self._hung_up_at = 0.0  # None while it is not, as far as we looked
        self._incoming = memoryview(bytearray(_PIECE * _PIECES))
        self._pieces = [
            self._incoming[at : at + _PIECE] for at in range(0, len(self._incoming), _PIECE)
        ]

    def read(self):
        """As `read_view`, bytes."""
        return bytes(self.read_view())

    def read_view(self, give_up=None):
        """A view of bytes, good until the next read.

        It is empty once when a host that was heard of has gone, or when ``give_up()`` says so (asked once a second).
        """
        while True:
            try:
                count = os.readv(self._fd, self._pieces)
            except BlockingIOError:
                count = -1
            if count > 0:
                self._heard = True
                self._hung_up_at = None
                return self._incoming[:count]
            if count == 0 and self._heard:
                if not self._is_gone():
                    continue
                self._heard = False
                return self._incoming[:0]
            # An edge that came before the read is reported again at worst: nothing is missed.
            self._edges.poll(-1 if give_up is None else 1)
            if give_up is not None and give_up():
                return self._incoming[:0]

    def write(self, data, give_up=None):
        """All of ``data``; HostGone if nobody is connected, or no more, or when ``give_up()`` says so (asked once a second)."""
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self._fd, view) :]
            except BlockingIOError:
                hung_up = self._hung_up(-1 if give_up is None else 1000)
                if (hung_up and self._is_gone()) or (give_up is not None and give_up()):
                    raise HostGone from None

    def wait_host(self, timeout_s):
        """Forget the last host and wait until one is connected; HostGone if none comes."""
        self._heard = False
        self._hung_up_at = None
        if self._is_gone(timeout_s):
            raise HostGone

    def _hung_up(self, timeout_ms):
        events = self._room.poll(timeout_ms)
        return bool(events and events[0][1] & select.POLLHUP)

    def _is_gone(self, grace_s=_GRACE_S):
        while self._hung_up(0):
            now = time.monotonic()
            if self._hung_up_at is None:
                self._hung_up_at = now
            if now - self._hung_up_at > grace_s:
                return True
            time.sleep(0.01)
        self._hung_up_at = None
        return False
