"""A QEMU process that runs one VM: watched by pidfd, spoken to by QMP.

QMP may break or hang (a stopped process answers nothing) without the VM ending; only the pidfd says that it has ended. Every
QMP call has a deadline.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from contextlib import suppress
from typing import Any

from qemu.qmp import EventListener, QMPClient, QMPError

from banger.host import exec as host_exec
from banger.host import proc
from banger.model.errors import BangerError, GuestNotReadyError
from banger.model.machine import VmmExit, VmPaths
from banger.model.process import ProcessIdentity
from banger.vmm.console import printable_tail

log = logging.getLogger(__name__)
CALL_S = 5.0
EVENT_GRACE_S = 0.5
_REASONS = {
    "guest-shutdown": "guest-shutdown",
    "guest-reset": "guest-reset",
    "guest-panic": "guest-panic",
}
_PANIC = "Kernel panic - not syncing"


class RunningQemu:
    """A started or adopted QEMU; see `engine.ports.RunningVmm`."""

    vmm = "qemu"

    def __init__(self, identity: ProcessIdentity, paths: VmPaths, accel: str) -> None:
        self.identity = identity
        self.accel = accel
        self._paths = paths
        self._qmp: QMPClient | None = None
        self._listener = EventListener(("SHUTDOWN", "GUEST_PANICKED"))
        self._reason = ""
        self._killed = False
        self._lock = asyncio.Lock()
        self._ended: asyncio.Task[VmmExit] = asyncio.create_task(
            self._watch(), name=f"pidfd {identity.pid}"
        )
        self._events: asyncio.Task[None] | None = None

    async def connect(self, timeout_s: float = CALL_S) -> None:
        """Connect the monitor; GuestNotReadyError when it does not answer in time."""
        async with self._lock:
            await self._connect(timeout_s)

    async def _connect(self, timeout_s: float) -> QMPClient:
        if self._qmp is not None:
            return self._qmp
        client = QMPClient(f"qemu-{self.identity.pid}")
        client.register_listener(self._listener)
        connection = socket.socket(socket.AF_UNIX)
        try:
            async with asyncio.timeout(timeout_s):
                connection.connect(str(self._paths.qmp_socket))
                await client.connect(connection)
        except (TimeoutError, OSError, QMPError) as error:
            connection.close()
            with suppress(Exception):
                client.remove_listener(self._listener)
            raise GuestNotReadyError(
                f"QEMU's monitor (pid {self.identity.pid}) does not answer", detail=str(error)
            ) from error
        self._qmp = client
        if self._events is None:
            self._events = asyncio.create_task(self._read_events())
        return client

    async def _read_events(self) -> None:
        async for event in self._listener:
            if event["event"] == "GUEST_PANICKED":
                self._reason = "guest-panic"
            elif not self._reason:
                data: Any = event.get("data") or {}
                self._reason = _REASONS.get(
                    str(data.get("reason")), "quit" if not data.get("guest") else ""
                )

    async def _call(self, command: str) -> Any:  # noqa: ANN401  QMP's answers are JSON
        async with self._lock:
            client = await self._connect(CALL_S)
            try:
                async with asyncio.timeout(CALL_S):
                    return await client.execute(command)
            except (TimeoutError, QMPError, OSError) as error:
                self._qmp = None
                with suppress(Exception):
                    async with asyncio.timeout(1):
                        await client.disconnect()
                raise GuestNotReadyError(
                    f"QEMU (pid {self.identity.pid}) did not answer {command}", detail=str(error)
                ) from error

    async def pause(self) -> None:
        """Stop the vCPUs."""
        await self._call("stop")

    async def resume(self) -> None:
        """Let the vCPUs run."""
        await self._call("cont")

    async def status(self) -> str:
        """QEMU's run state: running, paused, …"""
        answer = await self._call("query-status")
        return str(answer.get("status", "")) if isinstance(answer, dict) else ""

    async def power_down(self) -> None:
        """Press the ACPI power button."""
        await self._call("system_powerdown")

    async def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone."""
        if not self._ended.done():
            self._killed = True
            await proc.kill(self.identity)
        await self.wait()

    async def wait(self) -> VmmExit:
        """How it ended, once it has."""
        return await asyncio.shield(self._ended)

    async def _watch(self) -> VmmExit:
        returncode = await proc.wait_gone(self.identity)
        deadline = asyncio.get_running_loop().time() + EVENT_GRACE_S
        while (
            not self._reason
            and self._qmp is not None
            and asyncio.get_running_loop().time() < deadline
        ):
            if not self._listener.empty() or self._events is None:
                await asyncio.sleep(0)
            else:
                break
        return VmmExit(self._why(returncode), returncode, self._detail(returncode))

    def _why(self, returncode: int | None) -> str:
        if self._killed:
            return "quit"
        if self._reason in {"guest-reset", ""} and _PANIC in printable_tail(
            self._paths.console_log, 60
        ):
            return "guest-panic"
        if self._reason:
            return self._reason
        if returncode is not None and returncode < 0:
            return "host-signal"
        return "crash" if returncode != 0 else "guest-shutdown"

    def _detail(self, returncode: int | None) -> str:
        if self._killed or self._reason:
            return ""
        how = "" if returncode is None else f"QEMU {host_exec.describe_exit(returncode)}"
        own = printable_tail(self._paths.vmm_log, 5)
        return "\n".join(filter(None, (how, own)))

    async def close(self) -> None:
        """Let go of the monitor; QEMU runs on."""
        for task in (self._events, self._ended):
            if task is not None and not task.done():
                task.cancel()
                await asyncio.wait({task})
        client, self._qmp = self._qmp, None
        if client is not None:
            with suppress(QMPError, OSError, EOFError, TimeoutError, BangerError):
                async with asyncio.timeout(1):
                    await client.disconnect()
