"""A running guest: QEMU as a child that dies with this process, and what can be asked of it over its monitor.

A guest that resets ends the VM; one that powers itself off leaves it there, halted, as on a Firecracker, which has no ACPI S5.
"""

from __future__ import annotations

import asyncio
import ctypes
import logging
import os
import secrets
import signal
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

from qemu.qmp import ExecuteError, QMPClient, QMPError

from banger.host.exec import find_program
from banger.host.tsc import tsc_khz
from tests.framework.firecracker import engine, host
from tests.framework.firecracker.log import Log
from tests.framework.firecracker.resources import Resources
from tests.framework.firecracker.routes import FaultError

PR_SET_PDEATHSIG = 1  # linux/prctl.h
GRACE_S = 5.0
EVENTS = ("SHUTDOWN", "VSERPORT_CHANGE", "RESUME", "STOP")
MOVE_S = 120.0  # a snapshot to or from a file
MOVE_BYTES_S = 1 << 40
_WATCH_S = 0.1
_libc = ctypes.CDLL(None)
logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)  # what it logs is raised as well


class Machine:
    """The child. ``ended`` is the exit status that Firecracker would have now (a negative one is a signal); `launch` makes one."""

    def __init__(self, resources: Resources, log: Log) -> None:
        self.resources = resources
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        self.halted = False
        self.port_open = asyncio.Event()  # the guest's agent has its port open
        self.agent_path = f"\0firecracker-{secrets.token_hex(16)}"  # no file that could be left
        self._log = log
        self._client = QMPClient("firecracker")
        self._client.events.names.update(EVENTS)
        self._process: asyncio.subprocess.Process | None = None
        self._said = bytearray()
        self._tasks: set[asyncio.Task[None]] = set()
        self._killed = False
        self._console: int | None = None

    def open_console(self) -> None:
        """Open what is to take the console, if it is not standard output; FaultError. Firecracker does so before it loads the kernel."""
        path = self.resources.serial_out_path
        try:
            self._console = None if path is None else host.open_output(path)
        except OSError as error:
            what = "Start microvm error: Failed to create device manager: Error with EventFd:"
            raise FaultError(f"{what} {host.said(error)}") from error

    async def start(self, snapshot: int | None = None) -> None:
        """Start QEMU with the guest not running yet; FaultError with its last words if it cannot."""
        console, self._console = self._console, None
        ours, theirs = socket.socketpair()
        agent = socket.socket(socket.AF_UNIX)
        agent.bind(self.agent_path)
        agent.listen(1)
        fds = engine.Descriptors(theirs.fileno(), agent.fileno(), self.resources.taps, snapshot)
        words = engine.argv(find_program(engine.PROGRAM), self.resources, fds, khz=tsc_khz())
        try:
            self._process = await asyncio.create_subprocess_exec(
                *words, pass_fds=fds.all, preexec_fn=_die_with(os.getpid()), stderr=asyncio.subprocess.PIPE,
                stdin=None if console is None else asyncio.subprocess.DEVNULL, stdout=console,
            )  # fmt: skip
        finally:
            theirs.close()
            agent.close()
            if console is not None:
                os.close(console)
        self._spawn(self._listen_to_stderr(self._process))
        try:
            await self._client.connect(ours)
        except (OSError, EOFError, QMPError) as error:
            ours.close()
            await self.kill()
            why = self._said.decode(errors="replace").strip() or str(error)
            raise FaultError(f"Start microvm error: Internal error while starting microVM: {why}") from error  # fmt: skip
        self._spawn(self._watch(self._process))
        self._spawn(self._follow())

    def _spawn(self, work: Any) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _listen_to_stderr(self, process: asyncio.subprocess.Process) -> None:
        if process.stderr is None:
            return
        while line := await process.stderr.readline():
            self._said += line
            del self._said[:-4096]
            self._log(f"QEMU: {line.decode(errors='replace').strip()}", "Warn")

    async def _watch(self, process: asyncio.subprocess.Process) -> None:
        status = await process.wait()
        if not self._killed:
            self._log(f"panicked: QEMU has ended with {status}", "Error")
            self._finish(-signal.SIGABRT)

    async def _follow(self) -> None:
        async for event in self._client.events:
            data: Any = event.get("data")
            if event["event"] == "VSERPORT_CHANGE":
                if data["open"]:
                    self.port_open.set()
                else:
                    self.port_open.clear()
            elif event["event"] == "SHUTDOWN":
                self.halted = True
                if data["reason"] == "guest-reset":
                    self._finish(0)

    def _finish(self, status: int) -> None:
        if not self.ended.done():
            self.ended.set_result(status)

    async def ask(self, command: str, **arguments: Any) -> Any:
        """QEMU's answer; FaultError with its words if it refuses."""
        try:
            return await self._client.execute(command, arguments)
        except ExecuteError as error:
            raise FaultError(f"Internal VMM error: QEMU: {error.error.error.desc}") from error

    async def run(self) -> None:
        """Let the vCPUs run; a halted guest stays so."""
        if not self.halted:
            await self.ask("cont")

    async def pause(self) -> None:
        """Stop the vCPUs."""
        await self.ask("stop")

    async def driver_is_up(self, device: str) -> bool:
        """Whether the guest's driver has taken the virtio device; True where QEMU cannot say (before 7.2)."""
        try:
            answer: Any = await self._client.execute(
                "x-query-virtio-status", {"path": f"/machine/peripheral/{device}"}
            )
        except ExecuteError:
            return True
        return "DRIVER_OK" in str(answer["status"])

    async def wait_for_driver(self, device: str) -> None:
        """Return when the driver is up; the device is of no use before."""
        while not await self.driver_is_up(device):
            await asyncio.sleep(_WATCH_S)

    async def save(self, memory: int) -> None:
        """Write the paused guest into the file ``memory``; it can go on afterwards. FaultError."""
        await self.ask("migrate-set-parameters", **{"max-bandwidth": MOVE_BYTES_S})
        self._client.send_fd_scm(memory)
        await self.ask("getfd", fdname="memory")
        await self.ask("migrate", uri="fd:memory")
        moved = await self._until(lambda: self.ask("query-migrate"), ("completed", "failed"))
        if moved != "completed":
            raise FaultError(f"Create snapshot error: Cannot write memory file: {moved}")

    async def loaded(self) -> None:
        """Return when the snapshot that it was started with is there; FaultError."""
        why = "Load snapshot error: Failed to restore from snapshot: Failed to load guest memory:"
        try:
            states = ("paused", "prelaunch", "internal-error", "shutdown")
            state = await self._until(lambda: self.ask("query-status"), states)
        except (OSError, EOFError, QMPError) as error:
            await self.kill()
            raise FaultError(f"{why} {self._said.decode(errors='replace').strip()}") from error
        self.halted = state == "shutdown"

    async def _until(self, ask: Callable[[], Awaitable[Any]], states: tuple[str, ...]) -> str:
        """Ask until the answer's status is one of these, for at most `MOVE_S`; which one, or how far it came."""
        status = ""
        with suppress(TimeoutError):
            async with asyncio.timeout(MOVE_S):
                while status not in states:
                    status = (await ask()).get("status", "")
                    await asyncio.sleep(_WATCH_S / 10)
        return status

    async def kill(self) -> None:
        """End QEMU and everything that watches it; idempotent."""
        self._killed = True
        process = self._process
        if process is not None and process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
            await process.wait()
        with suppress(OSError, EOFError, QMPError, TimeoutError):
            async with asyncio.timeout(GRACE_S):
                await self._client.disconnect()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


def _die_with(parent: int) -> Any:
    """To run in the child before it becomes QEMU: SIGKILL when the parent has died."""

    def arrange() -> None:
        _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it has died already
            os._exit(1)

    return arrange
