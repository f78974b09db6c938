"""A virtio-serial port, of whose hosts the kernel tells late: its readings and states are played."""

import os

import pytest

from banger_agent import channel
from banger_agent.channel import HostGone, Port, find_port


@pytest.fixture
def port(tmp_path, monkeypatch):
    """A port with ``plays``: what reads give (an exception is raised), and ``hung_up``: what it counts as; the last of each stays."""
    os.mkfifo(tmp_path / "port")
    port = Port(str(tmp_path / "port"))
    port.plays, port.hung_up, port.now = [BlockingIOError()], [False], 0.0

    def next_of(played):
        return played.pop(0) if len(played) > 1 else played[0]

    def readv(_descriptor, views):
        data = next_of(port.plays)
        if isinstance(data, BaseException):
            raise data
        if data:
            views[0][: len(data)] = data
        return len(data)

    def sleep(seconds):
        port.now += seconds

    monkeypatch.setattr(channel.os, "readv", readv)
    monkeypatch.setattr(channel.time, "sleep", sleep)
    monkeypatch.setattr(channel.time, "monotonic", lambda: port.now)
    port._hung_up = lambda _timeout_ms: next_of(port.hung_up)
    yield port
    port._edges.close()
    os.close(port._fd)


def test_a_host_that_has_gone_is_told_once_after_a_moment(port):
    port.plays = [b"bytes", b""]
    port.hung_up = [True]
    assert port.read() == b"bytes"
    assert port.read() == b""
    assert 1 <= port.now < 1.1
    assert port.read_view(lambda: True) == b""  # nobody was heard of since: it waited for an edge


def test_a_change_of_hosts_that_is_told_late_is_not_the_end_of_the_new_one(port):
    port.plays = [b"old", b"new", b"", b"", b"more"]
    port.hung_up = [True] * 20 + [False]
    assert [port.read() for _ in range(3)] == [b"old", b"new", b"more"]


def test_an_answer_waits_until_the_kernel_knows_of_the_new_host(port, monkeypatch):
    written = []

    def write(_descriptor, view):
        if port.now < 0.1:
            raise BlockingIOError
        written.append(bytes(view))
        return len(view)

    monkeypatch.setattr(channel.os, "write", write)
    port.plays = [b"new"]
    port.hung_up = [True] * 20 + [False]
    port.read()
    port.write(b"answer")
    assert written == [b"answer"]


def test_nobody_is_waited_for_before_the_first_host(port, monkeypatch):
    """The agent's start would wait, else."""

    def write(_descriptor, _view):
        raise BlockingIOError

    monkeypatch.setattr(channel.os, "write", write)
    port.hung_up = [True]
    port.now = 1000.0
    with pytest.raises(HostGone):
        port.write(b"announcement")
    assert port.now == 1000.0


def test_a_writer_gives_up_when_it_is_told_to(port, monkeypatch):
    def write(_descriptor, _view):
        raise BlockingIOError

    monkeypatch.setattr(channel.os, "write", write)
    with pytest.raises(HostGone):
        port.write(b"block", lambda: True)


def test_a_host_that_does_not_come_is_waited_for_so_long(port):
    port.hung_up = [True]
    with pytest.raises(HostGone):
        port.wait_host(5)
    assert 5 <= port.now < 5.1


def test_a_port_is_found_by_its_name(tmp_path):
    for number, name in enumerate(("banger.agent", "banger.bulk.0")):
        (tmp_path / f"vport0p{number}").mkdir()
        (tmp_path / f"vport0p{number}" / "name").write_text(name + "\n")
    (tmp_path / "vport0p9").mkdir()
    assert find_port("banger.bulk.0", str(tmp_path), "/dev") == "/dev/vport0p1"
    assert find_port("banger.bulk.1", str(tmp_path)) is None
    assert find_port("banger.agent", str(tmp_path / "none")) is None
