"""A Firecracker process that runs one VM: watched by pidfd and by its console, spoken to by its API.

The API may hang (a stopped process answers nothing) without the VM ending; only the pidfd says that the process has ended, and only
the console that the guest has.
"""

from __future__ import annotations

import asyncio
import signal
from contextlib import suppress
from pathlib import Path

from banger.host import fs, proc
from banger.host.inotify import watching
from banger.model.errors import RefusedError, VmmDiedError
from banger.model.machine import VmmExit, VmPaths
from banger.model.process import ProcessIdentity
from banger.vmm.console import printable_tail
from banger.vmm.firecracker import versions
from banger.vmm.firecracker.api import Api
from banger.vmm.firecracker.bodies import Action, Body, Vm
from banger.vmm.firecracker.outcome import has_halted, is_noise, outcome

CALL_S = 5.0
KILL_S = 10.0
CONSOLE_LINES, LOG_LINES = 60, 5
_STATES = {"Running": "running", "Paused": "paused"}
_LAST_LINE_BYTES = 256
_GATHER_S = 0.05  # between looks at a console that changes all the time
_SETTLE_S = 0.1  # so long nothing follows a last word
_LOOK_AGAIN_S = 5.0  # where the kernel does not tell of changes


class RunningFirecracker:
    """A started or adopted Firecracker; see `engine.ports.RunningVmm`. Make it inside a running event loop."""

    vmm = "firecracker"
    accel = "kvm"
    agent = "vsock"

    def __init__(self, identity: ProcessIdentity, paths: VmPaths) -> None:
        self.identity = identity
        self._paths = paths
        self._api = Api(paths.api_socket)
        self._killed = self._halted = self._asked = False
        self._ended = asyncio.create_task(self._watch(), name=f"pidfd {identity.pid}")

    async def connect(self) -> None:
        """Connect to the API unless connected; OSError if it is not there."""
        await self._api.connect()

    async def send(self, body: Body, timeout_s: float = CALL_S) -> None:
        """Ask Firecracker for something; RefusedError or GuestNotReadyError."""
        await self._api.send(body, timeout_s)

    async def pause(self) -> None:
        """Stop the vCPUs. After a time-out Firecracker may still do it, once it answers again."""
        info = await self._api.describe(CALL_S)
        if versions.parse(info.vmm_version) in versions.PAUSE_CUTS_VSOCK:
            raise RefusedError(
                f"Firecracker {info.vmm_version} loses the way to a VM's agent when it pauses it",
                detail="new connections to its vsock device hang after a resume",
                hint="use another release of Firecracker: 1.15, or 1.17 and newer",
            )
        await self.send(Vm(state="Paused"))

    async def resume(self) -> None:
        """Let the vCPUs run."""
        await self.send(Vm(state="Resumed"))

    async def status(self) -> str:
        """``running`` or ``paused``."""
        info = await self._api.describe(CALL_S)
        return _STATES.get(info.state, info.state.lower())

    async def power_down(self) -> None:
        """Press Ctrl-Alt-Del, which a guest answers with a reboot: that ends Firecracker, and counts as a shutdown."""
        self._asked = True
        await self.send(Action(action_type="SendCtrlAltDel"))

    async def kill(self) -> None:
        """End it with SIGKILL and wait until it is gone."""
        if not self._ended.done() and proc.send_signal(self.identity, signal.SIGKILL):
            self._killed = True
        try:
            async with asyncio.timeout(KILL_S):
                await self.wait()
        except TimeoutError:
            raise VmmDiedError(
                f"Firecracker (pid {self.identity.pid}) was killed and is not gone after {KILL_S:g} s",
                detail="the kernel holds it, most likely in a disk that does not answer",
                hint="sudo dmesg | tail",
            ) from None

    async def wait(self) -> VmmExit:
        """How it ended, once it has. Who still waits when `close` is called is cancelled."""
        return await asyncio.shield(self._ended)

    async def _watch(self) -> VmmExit:
        halting = asyncio.create_task(self._end_when_halted(), name=f"console {self.identity.pid}")
        try:
            returncode = await proc.wait_gone(self.identity)
        finally:
            halting.cancel()
            await asyncio.wait({halting})
        return outcome(
            returncode,
            killed=self._killed,
            asked=self._asked,
            halted=self._halted,
            console=printable_tail(self._paths.console_log, CONSOLE_LINES),
            log=printable_tail(self._paths.vmm_log, LOG_LINES, without=is_noise),
        )

    async def _end_when_halted(self) -> None:
        """End Firecracker once its guest has powered off: disks are synced then, and nothing else ever happens."""
        await until_halted(self._paths.console_log)
        if not self._killed:
            self._halted = proc.send_signal(self.identity, signal.SIGKILL)

    async def close(self) -> None:
        """Let go of the API; Firecracker runs on."""
        if not self._ended.done():
            self._ended.cancel()
            await asyncio.wait({self._ended})
        await self._api.close()


async def until_halted(console: Path) -> None:
    """Return when ``console`` ends with the kernel's last word and nothing follows it."""
    with watching(console) as changed:
        while True:
            changed.clear()
            if has_halted(fs.read_tail(console, _LAST_LINE_BYTES)):
                if not await _within(changed, _SETTLE_S):
                    return
                continue
            await _within(changed, _LOOK_AGAIN_S)
            await asyncio.sleep(_GATHER_S)


async def _within(event: asyncio.Event, seconds: float) -> bool:
    """Whether ``event`` comes within ``seconds``."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
    return event.is_set()
