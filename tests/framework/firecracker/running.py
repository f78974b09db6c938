"""A running stand-in for tests of it: started, asked over its API, reached over its vsock socket, and gone at the end."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.framework.firecracker import official
from tests.framework.firecracker.install import make_firecracker
from tests.framework.firecracker.play import Play

START_S = 60.0
LOG_LINE = re.compile(r"\d{4}-\d\d-\d\dT[\d:.]+ \[[^\]\n]*\] .*\n")


class _Connection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=60)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))


class StandIn:
    """The process and its files, all in ``directory`` (whose path must be short). ``wrapper`` goes in front of the command line;
    ``program`` may be a real Firecracker.
    """

    def __init__(
        self,
        directory: Path,
        play: Play,
        *words: str,
        wrapper: tuple[str, ...] = (),
        program: Path | None = None,
    ) -> None:
        self.directory = directory
        self.program = program or make_firecracker(directory / "bin", play=play)
        self.socket = directory / "api.sock"
        self.vsock = directory / "v.sock"
        self.console = directory / "console.log"
        self.errors = directory / "stderr.log"
        with self.console.open("ab") as out, self.errors.open("ab") as err:
            self.process = subprocess.Popen(
                [*wrapper, self.program, "--api-sock", self.socket, *words],
                stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                env={official.VARIABLE: str(official.where())},
            )  # fmt: skip
        self._connection = _Connection(self.socket)

    def wait_for_socket(self) -> None:
        """Return when the API listens; AssertionError if the process ends instead."""
        deadline = time.monotonic() + START_S
        while True:
            with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as probe:
                probe.connect(str(self.socket))
                return
            assert self.process.poll() is None, self.errors.read_text()
            assert time.monotonic() < deadline, "the API socket did not appear"
            time.sleep(0.01)

    def ask(
        self, method: str, path: str, body: Any = None, *, raw: bytes | None = None
    ) -> tuple[int, Any]:
        """Status and decoded body (None if there is none) of an answer on the one connection."""
        sent = raw if raw is not None else None if body is None else json.dumps(body)
        self._connection.request(method, path, sent)
        response = self._connection.getresponse()
        text = response.read()
        return response.status, json.loads(text) if text else None

    def fault(self, method: str, path: str, body: Any = None, *, raw: bytes | None = None) -> str:
        """The fault_message of a request that is refused with 400."""
        status, answer = self.ask(method, path, body, raw=raw)
        assert status == 400, (status, answer)
        return answer["fault_message"]

    def put(self, path: str, **body: Any) -> None:
        """PUT what must be accepted."""
        assert self.ask("PUT", path, body) == (204, None), (path, body)

    def act(self, action: str) -> None:
        """PUT /actions."""
        self.put("/actions", action_type=action)

    def configure(self, kernel: Path, **boot: Any) -> None:
        """The least that boots: a kernel; 128 MiB and one vCPU are the default."""
        self.put("/boot-source", kernel_image_path=str(kernel), **boot)

    def connect(self, port: int, *, timeout_s: float = 30) -> tuple[socket.socket, bytes]:
        """A connection on which CONNECT was said, and the line that came back: empty if it was closed."""
        client = socket.socket(socket.AF_UNIX)
        client.settimeout(timeout_s)
        client.connect(str(self.vsock))
        client.sendall(b"CONNECT %d\n" % port)
        line = b""
        while not line.endswith(b"\n") and (byte := client.recv(1)):
            line += byte
        return client, line

    def wait_for_console(self, text: str, timeout_s: float = START_S) -> str:
        """The console, once it shows ``text``; words of the log, which goes there too, may stand between any two bytes."""
        deadline = time.monotonic() + timeout_s
        ended = False
        while text not in LOG_LINE.sub("", said := self.console.read_text(errors="replace")):
            assert time.monotonic() < deadline, said
            assert not ended, said
            ended = self.process.poll() is not None  # then its last words are there: once more
            time.sleep(0.02)
        return said

    def children(self) -> list[int]:
        """Its QEMU, if there is one."""
        pid = self.process.pid
        text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
        return [int(word) for word in text.split()]

    def close(self) -> None:
        """Kill it; whoever it started is gone with it."""
        self._connection.close()
        children = self.children() if self.process.poll() is None else []
        self.process.kill()
        self.process.wait()
        for child in children:
            wait_gone(child)


def wait_gone(pid: int, timeout_s: float = 60.0) -> None:
    """Return when the process is no more, or a zombie that somebody else must reap."""
    deadline = time.monotonic() + timeout_s
    while True:
        try:
            text = Path(f"/proc/{pid}/stat").read_text()
        except OSError:
            return
        if text.rpartition(")")[2].split()[0] in "ZX":
            return
        assert time.monotonic() < deadline, f"process {pid} is still there"
        time.sleep(0.01)


@contextlib.contextmanager
def stand_in(
    *words: str,
    play: Play | None = None,
    directory: Path | None = None,
    wrapper: tuple[str, ...] = (),
) -> Iterator[StandIn]:
    """A stand-in whose API listens, in a directory of its own or in ``directory``."""
    own = Path(tempfile.mkdtemp(prefix="bgr-", dir="/tmp")) if directory is None else directory
    made = StandIn(own, play or Play(), *words, wrapper=wrapper)
    try:
        if play is None or play.binds:
            made.wait_for_socket()
        yield made
    finally:
        made.close()
        if directory is None:
            shutil.rmtree(own)
