"""A VMM in memory. Its guests behave as the name of their kernel file says (``vmlinux-off`` powers off); see tests.framework.toy."""

import asyncio
import os
from dataclasses import dataclass, field

from banger.host import proc
from banger.model.errors import GuestNotReadyError, HostLacksError, RefusedError
from banger.model.machine import DiskFormat, VmmExit
from banger.model.process import ProcessIdentity
from tests.framework.toy import BEHAVIOURS

CONSOLE = {
    "idle": b"hello\n",
    "off": b"bye\n",
    "reset": b"again\n",
    "panic": b"Kernel panic - not syncing: toy\n",
    "obey": b"waiting for the button\n",
    "chatter": b"la la la la\n" * 100,
}
ENDS = {"off": "guest-shutdown", "reset": "guest-reset", "panic": "guest-panic"}


@dataclass
class Machine:
    """A process of the fake host; it outlives the `FakeVmm` that started it."""

    identity: ProcessIdentity
    paths: object
    behaviour: str
    exit: VmmExit | None = None
    paused: bool = False
    hung: bool = False
    waiters: set = field(default_factory=set)

    def end(self, reason, returncode=0, detail=""):
        if self.exit is None:
            self.exit = VmmExit(reason, returncode, detail)
            for waiter in self.waiters:
                if not waiter.done():
                    waiter.set_result(None)


class FakeVmm:
    """See `engine.ports.Vmm`. Another one made with the same ``machines`` is the next daemon's."""

    name, root_formats, named_tap = "fake", (DiskFormat.QCOW2, DiskFormat.RAW), False

    def __init__(self, machines=None):
        self.machines = {} if machines is None else machines
        self.broken = ""

    async def check(self):
        if self.broken:
            raise HostLacksError("no VMM here", detail=self.broken, hint="mend it")

    async def launch(self, request):
        await self.check()
        if not os.access(request.boot.kernel, os.R_OK):
            raise HostLacksError(
                f"{request.boot.kernel} cannot be read", hint="banger image build debian --force"
            )
        if self.find(request.paths) is not None:
            raise RefusedError(f"VM {request.name} runs already")
        behaviour = request.boot.kernel.name.partition("-")[2]
        assert behaviour in BEHAVIOURS, behaviour
        pid = 2**22 + 1 + len(self.machines)  # above every real pid
        machine = Machine(ProcessIdentity(pid, 1, proc.boot_id()), request.paths, behaviour)
        self.machines[pid] = machine
        with request.paths.console_log.open("ab") as file:
            file.write(CONSOLE[behaviour])
        request.paths.agent_socket.touch()
        if behaviour in ENDS:
            asyncio.get_running_loop().call_soon(machine.end, ENDS[behaviour])
        return FakeRunningVmm(machine)

    async def adopt(self, identity, paths):
        machine = self.machines.get(identity.pid)
        if machine is None or machine.exit is not None or machine.identity != identity:
            return None
        return FakeRunningVmm(machine)

    async def release(self, paths):
        pass

    def all(self, vms_dir, sockets_dir):
        running = [m for m in self.machines.values() if m.exit is None]
        return [
            (m.paths.state.name, m.identity) for m in running if m.paths.state.parent == vms_dir
        ]

    def left(self, vm_ids):
        return frozenset()

    def find(self, paths):
        running = (m for m in self.machines.values() if m.exit is None and m.paths == paths)
        return next((machine.identity for machine in running), None)


class FakeRunningVmm:
    """See `engine.ports.RunningVmm`; `crash` and `hang` are a test's."""

    vmm, accel, agent = "fake", "tcg", "serial"
    confinement, warning = "confined", ""

    def __init__(self, machine):
        self.machine = machine
        self.identity = machine.identity

    def crash(self):
        """As if somebody had killed the process."""
        self.machine.end("crash", -9, "was killed by SIGKILL")

    def hang(self, *, hung=True):
        """As if somebody had stopped the process: it answers nothing, but can be killed."""
        self.machine.hung = hung

    def _answer(self):
        if self.machine.hung or self.machine.exit is not None:
            raise GuestNotReadyError("the monitor does not answer")

    async def pause(self):
        self._answer()
        self.machine.paused = True

    async def resume(self):
        self._answer()
        self.machine.paused = False

    async def status(self):
        self._answer()
        return "paused" if self.machine.paused else "running"

    async def power_down(self):
        self._answer()
        if self.machine.behaviour == "obey":
            asyncio.get_running_loop().call_soon(self.machine.end, "guest-shutdown")

    async def kill(self):
        self.machine.end("quit", -9)

    async def wait(self):
        if self.machine.exit is None:
            waiter = asyncio.get_running_loop().create_future()
            self.machine.waiters.add(waiter)
            try:
                await waiter
            finally:
                self.machine.waiters.discard(waiter)
        return self.machine.exit

    async def close(self):
        pass
