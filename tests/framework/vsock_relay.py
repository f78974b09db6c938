"""Firecracker's end of a vsock device, for an agent on this host: CONNECT, OK, then bytes both ways until one side ends."""

import contextlib
import socket
import threading

AGENT_PORT = 1024
CHUNK_BYTES = 65536


class VsockRelay:
    """Listens at ``path`` and leads port 1024 to the Unix socket ``agent``; every other port is closed to all.

    It has threads of its own, two a connection, so that a test may be synchronous, or busy.
    """

    def __init__(self, path, agent):
        self._path, self._agent = path, agent
        self._listener = socket.socket(socket.AF_UNIX)
        self._open = set()
        self._threads = [threading.Thread(target=self._accept, name="vsock relay")]
        self.connections = 0

    def __enter__(self):
        self._listener.bind(str(self._path))
        self._listener.listen(1024)
        self._threads[0].start()
        return self

    def __exit__(self, *_):
        for end in (self._listener, *list(self._open)):
            hang_up(end)
        for thread in list(self._threads):
            thread.join(30)
            assert not thread.is_alive()
        self._listener.close()
        self._path.unlink(missing_ok=True)

    def _start(self, *work):
        thread = threading.Thread(target=work[0], args=work[1:], name="vsock relay")
        self._threads.append(thread)
        thread.start()
        return thread

    def _accept(self):
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.connections += 1
                self._open.add(client)
                self._start(self._connection, client, 2**30 + self.connections)

    def _connection(self, client, number):
        with client, socket.socket(socket.AF_UNIX) as agent:
            self._open.add(agent)
            with contextlib.suppress(OSError):
                if read_line(client) == b"CONNECT %d\n" % AGENT_PORT:
                    agent.connect(str(self._agent))
                    client.sendall(b"OK %d\n" % number)
                    questions = self._start(carry, client, agent)
                    carry(agent, client)
                    hang_up(client)
                    questions.join()
        self._open -= {client, agent}


def hang_up(end):
    """Whoever waits for the socket is told; what was sent is still the peer's."""
    with contextlib.suppress(OSError):
        end.shutdown(socket.SHUT_RDWR)


def read_line(end):
    line = b""
    while not line.endswith(b"\n") and (byte := end.recv(1)):
        line += byte
    return line


def carry(source, target):
    """Until ``source`` ends. A target that takes no more is no reason to end the other way: what it said before may be under way."""
    with contextlib.suppress(OSError):
        while data := source.recv(CHUNK_BYTES):
            target.sendall(data)
        hang_up(target)
