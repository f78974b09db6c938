"""How the agent asks the services of its guest, and what a session's environment is, on this host's sockets."""

import contextlib
import json
import socket
import threading
import time

import pytest

from banger_agent import health
from banger_agent import service as asked_service
from banger_agent.execs import session_environment
from banger_agent.service import Service


@contextlib.contextmanager
def server(answer, *, pieces=1, pause_s=0.0):
    """A TCP server that answers each connection's first bytes with ``answer``; yields its port and what it was asked."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked = []

    def serve():
        with contextlib.suppress(OSError):
            while True:
                connection, _ = listener.accept()
                with connection:
                    asked.append(connection.recv(4096))
                    step = max(1, -(-len(answer) // pieces))
                    for at in range(0, len(answer), step):
                        connection.sendall(answer[at : at + step])
                        time.sleep(pause_s)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1], asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{}", True),
        (b"HTTP/1.0 200\r\n\r\n", True),
        (b"HTTP/1.1 503 Service Unavailable\r\n\r\n", False),
        (b"HTTP/1.1 404 Not Found\r\n\r\n", False),
        (b"200 OK, says who knows no HTTP", False),
        (b"HTTP/1.1 ", False),
        (b"", False),
    ],
)
def test_a_service_with_a_path_answers_when_it_says_200(answer, ready):
    with server(answer) as (port, asked):
        assert Service(port, "/global/health").answers(30) is ready
        assert asked[0].startswith(b"GET /global/health HTTP/1.1\r\nHost: ")
        assert Service(port).answers(30) is True  # without a path an open port is enough


def test_an_answer_in_pieces_is_an_answer():
    with server(b"HTTP/1.1 200 OK\r\n\r\n", pieces=20, pause_s=0.005) as (port, _):
        assert Service(port, "/").answers(30)


def test_nobody_at_the_port_is_no_answer():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    assert Service(port, "/").answers(1) is False


@pytest.mark.parametrize("path", ["", "/"])
def test_one_that_is_slow_is_asked_on_one_connection_however_often(monkeypatch, path):
    """A second one would cost sshd a process, on a guest that is too busy for the first."""
    with socket.socket() as slow:
        slow.bind(("127.0.0.1", 0))
        slow.listen()
        if not path:
            monkeypatch.setattr(asked_service, "SSH_PORT", slow.getsockname()[1])
        service = Service(slow.getsockname()[1], path)
        assert [service.answers(0.05) for _ in range(5)] == [False] * 5
        connection, _ = slow.accept()
        slow.settimeout(0.1)
        with pytest.raises(TimeoutError):
            slow.accept()
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\n" if path else b"SSH-2.0-x\r\n")
            assert service.answers(1)


def test_one_that_says_nothing_for_too_long_is_called_again(monkeypatch):
    monkeypatch.setattr(asked_service, "PATIENCE_S", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        service = Service(silent.getsockname()[1], "/")
        first = None
        for _ in range(2):
            assert not service.answers(0.15)
            connection, _ = silent.accept()
            with connection:
                assert connection.recv(3) == b"GET"
                assert connection is not first
                first = connection


def test_one_that_ends_the_connection_does_not_answer_and_is_called_again():
    with server(b"") as (port, asked):
        service = Service(port, "/")
        assert [service.answers(30), service.answers(30)] == [False, False]
        assert len(asked) == 2


def test_what_is_declared_has_a_path_or_none_and_nonsense_is_left_out(tmp_path):
    path = tmp_path / "services.json"
    good = [{"name": "a", "port": 1}, {"name": "b", "port": 2, "path": "/x"}]
    path.write_text(json.dumps([*good, {"name": "c", "port": 3, "path": 5}]))
    assert health.declared(str(path)) == good


def test_one_that_is_slow_to_come_does_not_hide_those_that_answer(tmp_path):
    with server(b"HTTP/1.1 200 OK\r\n\r\n") as (port, _), socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()  # takes connections and says nothing
        path = tmp_path / "services.json"
        wanted = [
            {"name": "web", "port": port, "path": "/"},
            {"name": "slow", "port": silent.getsockname()[1], "path": "/"},
        ]
        path.write_text(json.dumps(wanted))
        services = health.Services(str(path))
        services.watch()
        end = time.monotonic() + 30
        while not (state := services.state(0.05))[0]["ready"]:
            assert time.monotonic() < end
        assert state[1]["ready"] is False
        waiting, _ = silent.accept()
        with waiting:
            waiting.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            assert services.state(30)[1]["ready"] is True  # and with it the asking ends


def test_sessions_have_what_the_systems_environment_file_says(tmp_path):
    path = tmp_path / "environment"
    path.write_text('# a comment\nPATH="/a:/b"\nexport EDITOR=vi\nA=b=c\nnonsense\n=x\n2B=x\n')
    assert session_environment(str(path)) == {"PATH": "/a:/b", "EDITOR": "vi", "A": "b=c"}
    assert session_environment(str(tmp_path / "none")) == {}
