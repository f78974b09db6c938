"""A QEMU process that runs one VM: watched by pidfd, spoken to by QMP.

The monitor may break or hang (a stopped process answers nothing) without the VM ending; only the pidfd says that it has ended.
"""

from __future__ import annotations

import asyncio
import signal

from banger.host import proc
from banger.host.confine import Confined
from banger.model.errors import VmmDiedError
from banger.model.machine import VmmExit, VmPaths
from banger.vmm.console import printable_tail
from banger.vmm.qemu.monitor import Monitor
from banger.vmm.qemu.outcome import outcome

CALL_S = 5.0
KILL_S = 10.0
_EVENT_GRACE_S = 1.0
_CONSOLE_LINES, _LOG_LINES = 60, 5


class RunningQemu:
    """A started or adopted QEMU; see `engine.ports.RunningVmm`. Make it inside a running event loop."""

    vmm = "qemu"
    agent = "serial"

    def __init__(
        self, started: Confined, paths: VmPaths, accel: str, *, log_from_bytes: int = 0
    ) -> None:
        """``log_from_bytes``: where in the VMM's log this run begins."""
        self.identity = identity = started.identity
        self.confinement, self.warning = started.how, started.warning
        self.accel = accel
        self._paths = paths
        self._log_from_bytes = log_from_bytes
        self._killed = False
        self._monitor = Monitor(paths.qmp_socket)
        self._ended = asyncio.create_task(self._watch(), name=f"pidfd {identity.pid}")

    async def connect(self, timeout_s: float = CALL_S) -> None:
        """Connect the monitor; GuestNotReadyError when it does not answer in time."""
        await self._monitor.connect(timeout_s)

    async def pause(self) -> None:
        """Stop the vCPUs. After a time-out QEMU may still do it, once it answers again."""
        await self._monitor.call("stop", CALL_S)

    async def resume(self) -> None:
        """Let the vCPUs run; also after QEMU stopped them because the host's disk was full."""
        await self._monitor.call("cont", CALL_S)

    async def status(self) -> str:
        """``running``, ``paused`` or another of QEMU's run states, such as ``io-error`` (the host's disk is full)."""
        answer = await self._monitor.call("query-status", CALL_S)
        return str(answer.get("status", "")) if isinstance(answer, dict) else ""

    async def power_down(self) -> None:
        """Press the ACPI power button."""
        await self._monitor.call("system_powerdown", CALL_S)

    async def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone."""
        if not self._ended.done() and proc.send_signal(self.identity, signal.SIGKILL):
            self._killed = True
        try:
            async with asyncio.timeout(KILL_S):
                await self.wait()
        except TimeoutError:
            raise VmmDiedError(
                f"QEMU (pid {self.identity.pid}) was killed and is not gone after {KILL_S:g} s",
                detail="the kernel holds it, most likely in a disk that does not answer",
                hint="sudo dmesg | tail",
            ) from None

    async def wait(self) -> VmmExit:
        """How it ended, once it has. Who still waits when `close` is called is cancelled."""
        return await asyncio.shield(self._ended)

    async def _watch(self) -> VmmExit:
        returncode = await proc.wait_gone(self.identity)
        events = await self._monitor.last_events(_EVENT_GRACE_S)
        return outcome(
            returncode,
            events,
            killed=self._killed,
            console=printable_tail(self._paths.console_log, _CONSOLE_LINES),
            log=printable_tail(self._paths.vmm_log, _LOG_LINES, since_bytes=self._log_from_bytes),
        )

    async def close(self) -> None:
        """Let go of the monitor; QEMU runs on."""
        if not self._ended.done():
            self._ended.cancel()
            await asyncio.wait({self._ended})
        await self._monitor.close()
