"""The daemon's side of `banger.host.confine_child`: starts it, gives it its steps, learns which process the program is.

Whatever goes wrong, no process is left.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from banger.host import exec as host_exec
from banger.host import fs, proc
from banger.host.confine_plan import Step, message
from banger.host.namespaces import small_python
from banger.host.threads import finish
from banger.model.errors import HostLacksError
from banger.model.process import ProcessIdentity

START_S = 15.0
_END_S = 5.0
_MAX_ANSWER_BYTES = 1 << 16
_LOG_TAIL_BYTES = 2000


class StepFailedError(Exception):
    """A step could not be done, or the launcher ended without a word. Says which and why."""


class EndedAtOnceError(HostLacksError):
    """The program began and is gone; ``returncode`` as of ``Popen``, None if it is not known."""

    next_step = "banger daemon logs"

    def __init__(self, program: str, returncode: int | None) -> None:
        super().__init__(f"{program} ended at once")
        self.returncode = returncode


class Launch:
    """One launcher at work, as a context: when it is left before `begin` has returned, nothing is left of it."""

    def __init__(
        self, log_file: Path, *, keep: Sequence[int] = (), enter: Sequence[int] = ()
    ) -> None:
        """``keep``: descriptors that the program inherits; ``enter``: those that only the launcher needs."""
        self._log_file = log_file
        self._log_from = fs.length_bytes(log_file)
        self._keep, self._enter = tuple(keep), tuple(enter)
        self._pids: list[int] = []
        self._begun = False
        self.notes: list[str] = []
        """What this kernel could not do and the program goes without."""

    async def __aenter__(self) -> Self:
        self._channel, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._channel.setblocking(False)  # noqa: FBT003  the standard library's signature
        number = theirs.fileno()
        words = (str(number), ",".join(map(str, self._keep)))
        argv = small_python("banger.host.confine_child", *words)
        try:
            with theirs:
                passed = (number, *self._keep, *self._enter)
                child = host_exec.spawn(argv, log=self._log_file, pass_fds=passed)
        except BaseException:
            self._channel.close()
            raise
        child.returncode = 0  # Popen must not reap it: host.proc does, which waits by pidfd
        self._pids.append(child.pid)
        return self

    async def until_ready(self, steps: Sequence[Step], argv: Sequence[str]) -> None:
        """Do ``steps``, up to the point where ``argv`` could be executed; StepFailedError if one cannot be done."""
        words = b"".join(os.fsencode(word) + b"\0" for word in argv)
        async with asyncio.timeout(START_S):
            with suppress(ConnectionError):  # it has ended: its last words are read below
                await self._send(message(steps))
                await self._send(words)
            while heard := await self._hear():
                if heard[0] == "ready":
                    return
        raise StepFailedError(f"the launcher ended: {self._last_words()}")

    async def begin(self) -> ProcessIdentity:
        """Execute the program; its process, our child, which may have ended meanwhile (`banger.host.proc.wait_gone` says how)."""
        pid = self._pids[-1]
        identity = proc.identify(pid)
        async with asyncio.timeout(START_S):
            with suppress(ConnectionError):
                await self._send(b"x")
            while await self._hear():  # the channel closes as the program begins
                pass
        for other in self._pids[:-1]:
            await _end(other)
        if identity is None:
            raise EndedAtOnceError("the program", proc.reap(pid))
        self._begun = True
        self._channel.close()
        return identity

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not self._begun:
            await finish(asyncio.ensure_future(self._clean_up()))

    async def _send(self, data: bytes) -> None:
        await asyncio.get_running_loop().sock_sendall(self._channel, data)

    async def _hear(self) -> list[str]:
        """The next answer that is not for us alone; empty when the launcher is gone."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await loop.sock_recv(self._channel, _MAX_ANSWER_BYTES)
            except ConnectionError:
                return []
            heard = [os.fsdecode(word) for word in data.split(b"\0")[:-1]]
            match heard:
                case ["pid", number]:
                    if int(number) not in self._pids:
                        self._pids.append(int(number))
                case ["note", text]:
                    self.notes.append(text)
                case ["failed", step, _, text]:
                    raise StepFailedError(f"{step.replace('_', ' ')}: {text}")
                case _:
                    return heard

    def _last_words(self) -> str:
        grown = max(0, fs.length_bytes(self._log_file) - self._log_from)
        text = fs.read_tail(self._log_file, min(grown, _LOG_TAIL_BYTES)).decode(errors="replace")
        return text.strip() or "it said nothing"

    async def _clean_up(self) -> None:
        """The launcher and what it has cloned end by themselves when they hear no more from us; by force when they do not."""
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)
        with suppress(TimeoutError):
            async with asyncio.timeout(_END_S):
                await self._drain()
        self._channel.close()
        for pid in self._pids:
            await _end(pid)

    async def _drain(self) -> None:
        """Hear all that is left to say: among it may be the pid of a process that has to be ended."""
        while True:
            with suppress(StepFailedError):
                if not await self._hear():
                    return


async def _end(pid: int) -> None:
    """End and reap our child ``pid``, whose number cannot be another's before it is reaped."""
    identity = proc.identify(pid)
    if identity is None:
        proc.reap(pid)
    else:
        await proc.kill(identity)
