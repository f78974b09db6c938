"""Firecracker's log: ``2026-01-02T03:04:05.000000000 [id:thread] message`` on standard output or in a file.

Level and origin are shown on demand, between the thread and the bracket.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress

from tests.framework.firecracker import host

LEVELS = ("Off", "Error", "Warn", "Info", "Debug", "Trace")


class Log:
    """One for the process; ``instance`` is the id of the VM."""

    def __init__(self, instance: str) -> None:
        self.instance = instance
        self._target = 1
        self._level = LEVELS.index("Info")
        self._show_level = False
        self._show_origin = False
        self._module = ""

    def update(
        self,
        log_path: str | None = None,
        level: str | None = None,
        show_level: bool | None = None,
        show_log_origin: bool | None = None,
        module: str | None = None,
    ) -> None:
        """PUT /logger and the command line: None leaves as it is, but for the level, which becomes Info; OSError for the file."""
        if log_path is not None:
            self._target = host.open_output(log_path)
        self._level = LEVELS.index(level or "Info")
        self._show_level = self._show_level if show_level is None else show_level
        self._show_origin = self._show_origin if show_log_origin is None else show_log_origin
        self._module = self._module if module is None else module

    def __call__(self, message: str, level: str = "Info", thread: str = "main") -> None:
        """Write a line; one that cannot be written is lost, as in Firecracker."""
        module = "api_server" if thread == "fc_api" else "vmm"
        if LEVELS.index(level) > self._level or not module.startswith(self._module):
            return
        now_ns = time.time_ns()
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(now_ns // 10**9))
        shown = f":{level.upper()}" if self._show_level else ""
        origin = ":tests/framework/firecracker:0" if self._show_origin else ""
        line = f"{stamp}.{now_ns % 10**9:09} [{self.instance}:{thread}{shown}{origin}] {message}\n"
        with suppress(OSError):
            os.write(self._target, line.encode())
