"""What the host may send to the guest's agent: requests, frames of a command, the mux, trees as tar streams.

Nothing of the machine is touched: routes that act on it end where their arguments are checked.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

from banger_agent import execs, identity, server, tars
from banger_agent import mux as agent_mux
from banger_agent.http import BadRequest, Gone, Request
from banger_agent.mux import Closed
from fuzz.targets.peers import require

_MOST_ANSWER_BYTES = 1 << 20


class _Stream:
    """What came, in pieces of a size that the first byte says; what is answered is kept."""

    def __init__(self, data: bytes) -> None:
        self._piece = 1 + (data[0] if data else 0)
        self._left = data[1:]
        self.said = b""
        self.closed = False

    def recv(self, limit: int = 65536) -> bytes:
        """Some bytes; empty at the end."""
        size = min(limit, self._piece)
        data, self._left = self._left[:size], self._left[size:]
        self.closed = not data
        return data

    def sendall(self, data: bytes) -> None:
        """Keep an answer."""
        self.said += bytes(data)
        require(len(self.said) <= _MOST_ANSWER_BYTES, "an answer without end")

    def accept(self) -> None:
        """Nothing to do."""

    def close(self, _why: str = "") -> None:
        """The end."""
        self.closed = True


class _NoServices:
    def state(self, wait_s: float) -> list[object]:
        """None are declared; nothing is waited for."""
        require(0 <= wait_s <= server.MAX_WAIT_MS / 1000, "waits longer than it may")
        return []


def _consume(request: Request) -> None:
    size = sum(len(piece) for piece in request.chunks())
    request.answer_json(200, {"bytes": size})


def _wish(request: Request) -> None:
    wish = execs.Wish(request.json())
    os.fsencode(repr(wish.argv))
    request.answer_empty()


def _become(request: Request) -> None:
    body = request.json()
    checks: dict[str, Callable[[Any], Any]] = identity._CHECKS  # noqa: SLF001  what POST /identity checks before it acts
    for key, value in body.items():
        if key not in checks:
            raise BadRequest(400, "unknown")
        checks[key](value)
    request.answer_empty()


def _number(request: Request) -> None:
    server._number(request, "port", "0", 65535)  # noqa: SLF001
    request.answer_empty()


def http(data: bytes) -> None:
    """A request is answered with something that an HTTP client reads, and never with an error of the agent's own."""
    agent: Any = server.Agent(_NoServices(), None, token_path="/nonexistent/token")  # noqa: S106  a path
    agent._routes = {  # noqa: SLF001  those that act on the machine end before they do
        **{route: agent._routes[route] for route in (("GET", "/healthz"),)},  # noqa: SLF001
        ("PUT", "/files"): _consume,
        ("POST", "/exec"): _wish,
        ("POST", "/identity"): _become,
        ("GET", "/tcp"): _number,
    }
    stream = _Stream(data)
    with suppress(Closed, Gone):
        agent._answer(stream)  # noqa: SLF001  `serve` would hide what it raises
    if not stream.said:
        return
    status, _, rest = stream.said.partition(b"\r\n")
    require(status.startswith(b"HTTP/1.1 ") and status[9:12].isdigit(), "no status line")
    require(status[9:10] != b"5" or status[9:12] == b"501", f"the agent's own error: {stream.said!r}")  # fmt: skip
    require(b"\r\n\r\n" in b"\r\n" + rest, "no end of the head")


def frames(data: bytes) -> None:
    """Frames to a command: signals and input reach it, nothing else happens, and the end of the stream hangs up."""
    sink = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)
    signals: list[int] = []
    program = SimpleNamespace(stdin=sink, outputs=(), pidfd=-1, signal=signals.append)
    stream = _Stream(data)
    request = SimpleNamespace(stream=stream)

    def exactly(size: int) -> bytes:
        parts = b""
        while len(parts) < size:
            piece = stream.recv(size - len(parts))
            if not piece:
                raise Gone
            parts += piece
        return parts

    request.exactly = exactly
    command: Any = execs.Command(program, stream, has_terminal=False)
    command._over.set()  # noqa: SLF001  it ends as soon as it is told
    command.obey(request)
    require(signals[-1:] == [1], "the command was not hung up on")
    require(all(0 <= signal <= 255 for signal in signals), "no signal at all")
    if program.stdin >= 0:
        os.close(program.stdin)


class _Link:
    def __init__(self, data: bytes) -> None:
        piece = 1 + (data[0] if data else 0) * 16
        self._pieces = [data[at : at + piece] for at in range(1, len(data), piece)]
        self.written = 0

    def read(self) -> bytes | None:
        """A piece; an empty one is a host that has gone."""
        return self._pieces.pop(0) if self._pieces else None

    def write(self, data: bytes) -> None:
        """Count what is written."""
        self.written += len(data)


def mux(data: bytes) -> None:
    """The guest's end of the mux: no state of a stream outgrows what was agreed, whatever frames come."""
    link = _Link(data)
    kept: list[Any] = []

    def serve(stream: Any, port: int) -> None:  # noqa: ANN401  the agent is not typed
        require(0 <= port <= 0xFFFF, "no port")
        kept.append(stream)
        with suppress(Closed):
            stream.accept()

    start, agent_mux.threads.start = (  # type: ignore[attr-defined]
        agent_mux.threads.start,  # type: ignore[attr-defined]
        lambda function, *arguments: function(*arguments),
    )
    try:
        channel: Any = agent_mux.Mux(link, serve)
        channel.run()
    finally:
        agent_mux.threads.start = start  # type: ignore[attr-defined]
    require(not channel._streams, "streams outlive the channel")  # noqa: SLF001
    for stream in kept:
        require(stream.closed, "a stream outlives the channel")
        require(stream._buffered <= 2 * agent_mux.WINDOW, "more is kept than credit allows")  # noqa: SLF001
        with suppress(Closed):
            while stream.recv():
                pass


def tar(data: bytes) -> None:
    """A tree that the host puts into the guest stays below its directory; anything else is a bad request."""
    with tempfile.TemporaryDirectory(prefix="banger-fuzz-") as name:
        inside, outside = os.path.join(name, "in"), os.path.join(name, "out")  # noqa: PTH118
        os.mkdir(inside)  # noqa: PTH102
        os.symlink("../out", os.path.join(inside, "link"))  # noqa: PTH118, PTH211
        with suppress(BadRequest):
            tars.unpack(_chunks(data), inside)
        require(not os.path.lexists(outside), "something was written outside of the directory")
        require(sorted(os.listdir(name)) == ["in"], "something lies beside the directory")  # noqa: PTH208


def _chunks(data: bytes) -> Iterator[bytes]:
    size = 1 + (data[0] if data else 0) * 8
    rest = data[1:]
    yield from (rest[at : at + size] for at in range(0, len(rest), size))
