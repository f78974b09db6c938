"""Whether one service of this guest answers."""

import _socket  # socket.py costs a starting guest too much
import time

from banger_agent import threads

SSH_PORT = 22
PATIENCE_S = 60.0  # sshd itself gives up after 120
_ADDRESSES = ((_socket.AF_INET, "127.0.0.1"), (_socket.AF_INET6, "::1"))


class Service:
    """Something that accepts TCP connections on ``port``; sshd must also say who it is, and what has a ``path`` answer a GET of it with 200.

    One that is slow keeps its connection from question to question. Each new one costs sshd a process: a busy guest that is asked anew every
    second has ever more of them, and comes to answer none.
    """

    def __init__(self, port, path=""):
        self._port = port
        self._path = path
        self._wanted = 12 if path else 4 if port == SSH_PORT else 0
        self._lock = threads.Lock()
        self._connection = None
        self._asked_at = 0.0
        self._said = b""

    def answers(self, timeout_s):
        """Whether it does within ``timeout_s``. What it says later counts at the next question."""
        end = time.monotonic() + timeout_s
        if not self._lock.acquire(True, timeout_s):  # another one asks
            return False
        try:
            return self._ask(end)
        finally:
            self._lock.release()

    def _ask(self, end):
        if self._connection is not None and time.monotonic() - self._asked_at > PATIENCE_S:
            self._hang_up()
        if self._connection is None and not self._call(end):
            return False
        try:
            is_complete = self._listen(end)
        except _socket.timeout:
            return False  # it may be slow: the connection stays
        except OSError:
            is_complete = False
        said = self._said
        self._hang_up()
        return is_complete and (not self._wanted or _is_well(said))

    def _call(self, end):
        """Connect and ask; whether somebody is there."""
        for family, address in _ADDRESSES:
            connection = None
            try:
                connection = _socket.socket(family, _socket.SOCK_STREAM)
                connection.settimeout(_left(end))
                connection.connect((address, self._port))
                if self._path:
                    request = "GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
                    connection.sendall((request % self._path).encode("ascii"))
            except OSError:
                if connection is not None:
                    connection.close()
                continue  # not here
            self._connection, self._asked_at, self._said = connection, time.monotonic(), b""
            return True
        return False

    def _listen(self, end):
        """Whether it has said what is wanted of its first line; OSError, of which a time-out is one."""
        while len(self._said) < self._wanted:
            self._connection.settimeout(_left(end))
            piece = self._connection.recv(self._wanted - len(self._said))
            if not piece:
                return False
            self._said += piece
        return True

    def _hang_up(self):
        self._connection.close()
        self._connection = None


def _is_well(said):
    return said == b"SSH-" or (said[:7] == b"HTTP/1." and said[8:12] == b" 200")


def _left(end):
    return max(0.01, end - time.monotonic())
