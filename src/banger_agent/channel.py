"""The byte channel to the host: a virtio-serial port, or for tests a Unix socket."""

import os
import select
import socket
import time

_CLASS = "/sys/class/virtio-ports"


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
    """An open virtio-serial port. While no host is connected `read` waits, and returns b"" once when one has gone."""

    def __init__(self, path):
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        self._poll = select.poll()
        self._poll.register(self._fd, select.POLLIN)
        self._connected = False

    def read(self):
        """Bytes; b"" when the host has gone."""
        while True:
            events = self._poll.poll()[0][1]
            if events & select.POLLIN:
                data = os.read(self._fd, 65536)
                if data:
                    self._connected = True
                    return data
            if self._connected:
                self._connected = False
                return b""
            time.sleep(0.05)  # nobody there: the kernel says HUP at once, again and again

    def write(self, data):
        """All of ``data``; waits while no host is connected."""
        view = memoryview(data)
        while view:
            view = view[os.write(self._fd, view) :]


class Listener:
    """A Unix socket with one client at a time, in the place of a port."""

    def __init__(self, path):
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(path)
        self._listener.listen(1)
        self._client = None

    def read(self):
        """As `Port.read`."""
        if self._client is None:
            self._client, _ = self._listener.accept()
        try:
            data = self._client.recv(65536)
        except OSError:
            data = b""
        if not data:
            client, self._client = self._client, None
            client.close()
        return data

    def write(self, data):
        """As `Port.write`, but data for nobody is lost."""
        client = self._client
        if client is not None:
            try:
                client.sendall(data)
            except OSError:
                pass  # the reader notices
