"""Ways in which the process ends before its time."""

from __future__ import annotations

import os
import resource
import signal
import sys
from typing import NoReturn

from tests.framework.firecracker import command
from tests.framework.firecracker.log import Log


class FatalError(Exception):
    """The process ends with ``status``; ``message`` goes to the log, ``shown`` (Rust's form of it) to standard error."""

    def __init__(self, message: str, shown: str, status: int = command.GENERIC_ERROR) -> None:
        super().__init__(message)
        self.message = message
        self.shown = shown
        self.status = status


def die(number: signal.Signals) -> NoReturn:
    """End by a signal, without a core."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)
    sys.exit(command.UNEXPECTED_ERROR)


def panic(why: str, log: Log) -> NoReturn:
    """Rust's way out: a line in the log, and SIGABRT."""
    log(f"Firecracker panicked at tests/framework/firecracker:\n{why}", "Error")
    die(signal.SIGABRT)
