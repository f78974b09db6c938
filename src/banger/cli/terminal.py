"""A command in the guest, attached to this process's stdin, stdout, stderr and signals."""

from __future__ import annotations

import os
import signal
import sys
import termios
import threading
import tty as tty_modes
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from banger.api.frames import FrameType
from banger.cli.pipes import BROKEN_PIPE, CHUNK_BYTES, write_all
from banger.client.streams import ExecStream, exit_status, not_started

_FORWARDED = (
    signal.SIGINT,
    signal.SIGTERM,
    signal.SIGHUP,
    signal.SIGQUIT,
    signal.SIGUSR1,
    signal.SIGUSR2,
)
_WAKE = signal.SIGCONT  # ends the thread that waits for signals


def terminal_size() -> tuple[int, int]:
    """Rows and columns of the terminal on stdin or stdout, 24 and 80 where there is none."""
    for descriptor in (0, 1):
        with suppress(OSError):
            size = os.get_terminal_size(descriptor)
            if size.lines and size.columns:
                return size.lines, size.columns
    return 24, 80


@contextmanager
def _raw(descriptor: int) -> Iterator[None]:
    """The terminal hands every key through and is put back afterwards."""
    before: list[Any] = termios.tcgetattr(descriptor)
    tty_modes.setraw(descriptor, termios.TCSADRAIN)  # what was typed ahead is the command's
    try:
        yield
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


class Attached:
    """Runs one command to its end. The main thread receives; one thread reads stdin, one waits for signals.

    Signals are taken with sigwait, not by handlers: a handler would run in the middle of the main thread's receive.
    """

    def __init__(self, stream: ExecStream, *, tty: bool) -> None:
        self._stream = stream
        self._tty = tty

    def run(self) -> int:
        """The command's exit status."""
        sys.stdout.flush()
        sys.stderr.flush()
        wanted = {signal.SIGWINCH} if self._tty else set(_FORWARDED)
        if self._tty:
            wanted |= {signal.SIGTERM, signal.SIGHUP}
        before = signal.pthread_sigmask(signal.SIG_BLOCK, wanted | {_WAKE})
        waiter = threading.Thread(target=self._signals, args=(wanted | {_WAKE},), daemon=True)
        waiter.start()
        try:
            threading.Thread(target=self._input, daemon=True).start()
            if not self._tty:
                return self._output()
            with _raw(0):
                return self._output()
        finally:
            if waiter.ident is not None and waiter.is_alive():
                signal.pthread_kill(waiter.ident, _WAKE)
                waiter.join(5)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)

    def _output(self) -> int:
        while True:
            kind, payload = self._stream.receive()
            if kind is FrameType.EXIT:
                return exit_status(payload)
            if kind is FrameType.FAILED:
                raise not_started(payload)
            if kind in {FrameType.STDOUT, FrameType.STDERR} and not write_all(
                1 if kind is FrameType.STDOUT else 2, payload
            ):
                self._stream.signal(signal.SIGPIPE)
                return BROKEN_PIPE

    def _input(self) -> None:
        with suppress(
            OSError
        ):  # stdin may be closed or gone; then the command just gets no more of it
            while data := os.read(0, CHUNK_BYTES):
                if not self._stream.write(data):
                    return
        self._stream.send(FrameType.STDIN_EOF)

    def _signals(self, wanted: set[signal.Signals]) -> None:
        while (signo := signal.sigwait(wanted)) is not _WAKE:
            if signo is signal.SIGWINCH:
                self._stream.resize(*terminal_size())
            else:
                self._stream.signal(signo)
