"""Starts QEMU for a VM and finds it again. Sockets are bound here and passed, so that connecting never races."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from pathlib import Path

from banger.host import exec as host_exec
from banger.host import probe, proc
from banger.host.undo import UndoStack
from banger.model.errors import HostLacksError, InvalidInputError, VmmDiedError
from banger.model.machine import LaunchRequest, VmPaths
from banger.model.process import ProcessIdentity
from banger.vmm.console import printable_tail
from banger.vmm.qemu import args
from banger.vmm.qemu.process import RunningQemu

log = logging.getLogger(__name__)
LAUNCH_S = 15.0
MAX_SOCKET_PATH_BYTES = 107


class QemuVmm:
    """The QEMU backend. ``accel`` is auto, kvm or tcg; ``program`` overrides the QEMU found on PATH."""

    name = "qemu"

    def __init__(self, *, accel: str = "auto", program: str | None = None) -> None:
        if accel not in {"auto", "kvm", "tcg"}:
            raise InvalidInputError(
                f"accel {accel!r} is unknown", hint="set accel to auto, kvm or tcg"
            )
        self._program = program
        self._wanted = accel

    @property
    def accel(self) -> str:
        """Kvm where it really works (or was demanded), else tcg."""
        if self._wanted != "auto":
            return self._wanted
        return "kvm" if probe.kvm().ok else "tcg"

    async def check(self) -> None:
        """HostLacksError if there is no usable QEMU, or KVM was demanded and does not work."""
        answer = await asyncio.to_thread(probe.qemu, self._program)
        if not answer.ok:
            probe.qemu.cache_clear()
            raise HostLacksError("QEMU cannot run VMs here", detail=answer.why, hint=answer.hint)
        if self._wanted == "kvm" and not probe.kvm().ok:
            raise HostLacksError(
                "KVM was asked for and does not work",
                detail=probe.kvm().why,
                hint="set accel to auto",
            )

    async def launch(self, request: LaunchRequest) -> RunningQemu:
        """Start QEMU and return once its monitor answers; on failure nothing is left."""
        program = self._program or host_exec.find_program(
            "qemu-system-x86_64", package="qemu-system-x86"
        )
        for path in (request.boot.kernel, request.boot.initramfs):
            if not os.access(path, os.R_OK):
                raise HostLacksError(f"{path} cannot be read", hint="banger image build --force")
        accel = self.accel
        async with UndoStack() as undo:
            sockets = [_listen(path, undo) for path in _socket_paths(request.paths)]
            numbers = [item.fileno() for item in sockets]
            fds = args.Descriptors(
                numbers[0], numbers[1], tuple(numbers[2:]), request.network.tap_fd
            )
            argv = args.build(program, request, fds, accel=accel, khz=probe.cpu_khz())
            child = host_exec.spawn(argv, log=request.paths.vmm_log, pass_fds=fds.all)
            child.returncode = 0  # reaped by host.proc, which waits by pidfd
            identity = proc.identify(child.pid)
            if identity is None:
                raise self._died(request, proc.reap(child.pid))
            undo.push("end QEMU", lambda: proc.kill(identity))
            vmm = RunningQemu(identity, request.paths, accel)
            undo.push("let go of QEMU", vmm.close)
            await self._monitor(request, vmm)
            for item in sockets:
                item.close()
            undo.release()
            return vmm

    async def _monitor(self, request: LaunchRequest, vmm: RunningQemu) -> None:
        connecting = asyncio.create_task(vmm.connect(LAUNCH_S))
        ended = asyncio.create_task(vmm.wait())
        tasks: set[asyncio.Task[object]] = {connecting, ended}  # type: ignore[arg-type]  # only waited for
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if ended.done() and not (connecting.done() and connecting.exception() is None):
                raise self._died(request, ended.result().returncode)
            await connecting
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    def _died(
        self, request: LaunchRequest, returncode: int | None
    ) -> VmmDiedError | HostLacksError:
        how = "ended at once" if returncode is None else host_exec.describe_exit(returncode)
        return HostLacksError(
            f"QEMU for VM {request.name} {how}",
            detail=printable_tail(request.paths.vmm_log, 10),
            hint="see what QEMU said above; banger daemon logs",
        )

    async def adopt(self, identity: ProcessIdentity, paths: VmPaths) -> RunningQemu | None:
        """Take over a QEMU that an earlier daemon started. Its monitor may be stuck: it is tried again when it is needed."""
        if not proc.alive(identity):
            proc.reap(identity.pid)
            return None
        argv = Path(f"/proc/{identity.pid}/cmdline").read_bytes().split(b"\0")
        vmm = RunningQemu(identity, paths, "kvm" if b"kvm" in argv else "tcg")
        try:
            await vmm.connect()
        except Exception as error:  # noqa: BLE001  the pidfd alone suffices
            log.warning("adopted QEMU %d, but its monitor does not answer: %s", identity.pid, error)
        return vmm

    def find(self, paths: VmPaths) -> ProcessIdentity | None:
        """The QEMU that writes this VM's console: its path is an argument of nobody else."""
        option = f"file,id=console,path={str(paths.console_log).replace(',', ',,')},append=on"
        found = proc.find_by_argument(option)
        return found[0] if found else None


def _socket_paths(paths: VmPaths) -> list[Path]:
    return [
        paths.qmp_socket,
        paths.agent_socket,
        *(paths.bulk_socket(n) for n in range(args.BULK_PORTS)),
    ]


def _listen(path: Path, undo: UndoStack) -> socket.socket:
    if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
        raise HostLacksError(
            f"socket path {path} is too long", hint="set BANGER_RUNTIME_DIR to a shorter directory"
        )
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    undo.push("close the listener", listener.close)
    listener.bind(str(path))
    undo.push(f"remove {path.name}", lambda: path.unlink(missing_ok=True))
    path.chmod(0o600)
    listener.listen(1)
    return listener
