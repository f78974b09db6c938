"""The kernel's table of connections: those of one address are deleted, however the kernel lists them."""

import errno
import socket
import struct
import threading

import pytest

from banger.host import conntrack
from banger.host.conntrack import Connections
from banger.host.netlink import NetlinkError, attribute, attributes, nested


def entry(source, number):
    pair = nested(1, nested(1, attribute(1, socket.inet_aton(source)), attribute(2, bytes(4))))
    return pair + attribute(12, struct.pack(">I", number))


class Kernel:
    """Answers as ctnetlink does, one that cannot list by address, over a socket pair; keeps what it was asked."""

    def __init__(self, *entries):
        self.entries = dict(enumerate(entries))
        self.deleted, self.asked, self.vanish = [], 0, set()
        self.ours, self._theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        while data := self._theirs.recv(1 << 16):
            _, kind, _, sequence, _ = struct.unpack_from("=IHHII", data)
            said = attributes(data[20:])
            self.asked += 1
            if kind & 0xFF == 1:
                for number, source in self.entries.items():
                    self._send(0x100, sequence, bytes(4) + entry(source, number))
                self._send(3, sequence, bytes(4))
            else:
                (number,) = struct.unpack(">I", said[12])
                code = 0 if self.entries.pop(number, None) else -errno.ENOENT
                if number in self.vanish:
                    code = -errno.ENOENT
                self.deleted.append(number)
                self._send(2, sequence, struct.pack("=i", code))

    def _send(self, kind, sequence, body):
        stale = struct.pack("=IHHII", 16 + len(body), kind, 0, sequence - 1, 0) + body
        real = struct.pack("=IHHII", 16 + len(body), kind, 0, sequence, 0) + body
        pad = bytes(-len(stale) % 4)
        self._theirs.send(stale + pad + real)

    def close(self):
        self._theirs.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)
        self._theirs.close()


@pytest.fixture
def kernel():
    made = Kernel("10.0.0.1", "10.0.0.2", "10.0.0.1", "10.0.0.11")
    yield made
    made.close()


def test_only_those_of_the_address_are_deleted(kernel):
    with Connections(kernel.ours) as table:
        assert table.forget("10.0.0.1") == 2
        assert table.forget("10.0.0.9") == 0
    assert sorted(kernel.deleted) == [0, 2]
    assert kernel.entries == {1: "10.0.0.2", 3: "10.0.0.11"}


def test_one_that_is_gone_by_then_is_no_error(kernel):
    kernel.vanish = {0}
    with Connections(kernel.ours) as table:
        assert table.forget("10.0.0.1") == 1


def test_a_table_that_never_empties_is_left_after_a_while(kernel, monkeypatch):
    monkeypatch.setattr(Connections, "_delete", lambda self, connection: True)
    with Connections(kernel.ours) as table:
        assert table.forget("10.0.0.1") == 2 * conntrack.MAX_ROUNDS


def test_a_kernel_that_refuses_says_why(monkeypatch):
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    body = struct.pack("=i", -errno.EPERM)
    theirs.send(struct.pack("=IHHII", 20, 2, 0, 1, 0) + body)
    with theirs, Connections(ours) as table, pytest.raises(NetlinkError, match="not permitted"):
        table.forget("10.0.0.1")
