"""Starts QEMU for a VM and finds it again. Sockets are bound here and passed, so that connecting never races."""

from __future__ import annotations

import asyncio
import functools
import logging
import os
import socket
from collections.abc import Iterable
from pathlib import Path

from banger.host import confine, fs, probe, proc
from banger.host import exec as host_exec
from banger.host.confine import Confined, Policy
from banger.host.confine_launch import EndedAtOnceError
from banger.host.paths import check_socket_path
from banger.host.tsc import tsc_khz
from banger.host.undo import UndoStack
from banger.model.errors import BangerError, HostLacksError, InvalidInputError, RefusedError
from banger.model.machine import DiskFormat, LaunchRequest, VmPaths
from banger.model.process import ProcessIdentity
from banger.vmm import confinement
from banger.vmm.console import printable_tail
from banger.vmm.launch import check_readable, or_ended, take_files_back
from banger.vmm.qemu import args
from banger.vmm.qemu.files import program_files
from banger.vmm.qemu.process import RunningQemu

log = logging.getLogger(__name__)
LAUNCH_S = 15.0
ADOPT_S = 2.0
_BACKLOG = 8
_LOG_LINES, _CONSOLE_LINES = 10, 5


class QemuVmm:
    """The QEMU backend. ``accel`` is auto, kvm or tcg; ``program`` overrides the QEMU found on PATH; ``policy`` says whether it is confined."""

    name = "qemu"
    root_formats = (DiskFormat.QCOW2, DiskFormat.RAW)
    named_tap = False

    def __init__(
        self, *, accel: str = "auto", program: str | None = None, policy: Policy = Policy.AUTO
    ) -> None:
        if accel not in {"auto", "kvm", "tcg"}:
            raise InvalidInputError(
                f"accel {accel!r} is unknown", hint="set accel to auto, kvm or tcg"
            )
        self._program = program
        self._wanted = accel
        self._policy = policy

    @property
    def accel(self) -> str:
        """Kvm where it really works (or was demanded), else tcg."""
        if self._wanted != "auto":
            return self._wanted
        return "kvm" if probe.kvm() else "tcg"

    async def check(self) -> None:
        """HostLacksError if there is no usable QEMU, or KVM was demanded and does not work."""
        answer = await asyncio.to_thread(probe.qemu, self._program)
        if not answer:
            probe.qemu.cache_clear()  # it may be installed before the next try
            raise HostLacksError("QEMU cannot run VMs here", detail=answer.why, hint=answer.hint)
        if self._wanted == "kvm" and not (kvm := probe.kvm()):
            probe.kvm.cache_clear()
            raise HostLacksError(
                "KVM was asked for and does not work",
                detail=f"{kvm.why}\n{kvm.hint}".strip(),
                hint="banger config show, and set accel to auto",
            )

        if self._policy is not Policy.OFF:
            await asyncio.to_thread(program_files, self._find_program())

    def _find_program(self) -> str:
        """Its real path: QEMU looks for its modules and firmware beside where it is, and a link's place is empty when it is confined."""
        found = self._program or host_exec.find_program(
            probe.QEMU_PROGRAM, package=probe.QEMU_PACKAGE
        )
        return os.path.realpath(found)

    async def launch(self, request: LaunchRequest) -> RunningQemu:
        """Start QEMU and return once its monitor answers; on failure nothing is left."""
        program = self._find_program()
        check_readable(request, request.boot.pvh_kernel)
        take_files_back(request)
        if (other := self.find(request.paths)) is not None:  # whose sockets would be replaced
            raise RefusedError(
                f"VM {request.name} runs already, as pid {other.pid}",
                hint=f"banger vm stop {request.name}",
            )
        accel = self.accel
        khz = await asyncio.to_thread(tsc_khz) if accel == "tcg" else 0
        async with UndoStack() as undo:
            listeners = [_listen(path, undo) for path in _socket_paths(request.paths)]
            qmp, agent, *bulk = [listener.fileno() for listener in listeners]
            fds = args.Descriptors(qmp, agent, tuple(bulk), request.network.tap_fd)
            argv = args.build(program, request, fds, accel=accel, khz=khz)
            log_from = _prepare_logs(request.paths)
            try:
                started = await self._start(argv, request, fds)
            except EndedAtOnceError as error:
                raise _died(request, error.returncode, log_from) from error
            undo.push("end QEMU", lambda: proc.kill(started.identity))
            vmm = RunningQemu(started, request.paths, accel, log_from_bytes=log_from)
            undo.push("let go of QEMU", vmm.close)
            outcome = await or_ended(vmm, vmm.connect(LAUNCH_S))
            if outcome is not None:
                raise _died(request, outcome.returncode, log_from)
            await vmm.resume()  # it waits until we listen, so that no last word of its is lost
            for listener in listeners:
                listener.close()
            undo.release()
            return vmm

    async def _start(
        self, argv: list[str], request: LaunchRequest, fds: args.Descriptors
    ) -> Confined:
        log_file = request.paths.vmm_log
        if self._policy is Policy.OFF:
            return confine.start_unconfined(argv, log=log_file, keep=fds.all)
        files = await asyncio.to_thread(program_files, argv[0])
        may = confinement.qemu(request, files, accel=self.accel)
        return await confine.start(argv, may, log=log_file, keep=fds.all)

    async def adopt(self, identity: ProcessIdentity, paths: VmPaths) -> RunningQemu | None:
        """Take over a QEMU that an earlier daemon started. Its monitor may be stuck: it is tried again when it is needed."""
        argv = proc.arguments(identity)
        if not argv:
            return None
        vmm = RunningQemu(Confined(identity, ""), paths, "kvm" if "kvm" in argv else "tcg")
        try:
            await vmm.connect(ADOPT_S)
        except BangerError as error:
            log.warning("QEMU %d is adopted, but its monitor: %s", identity.pid, error.what)
        except BaseException:
            await vmm.close()
            raise
        return vmm

    def find(self, paths: VmPaths) -> ProcessIdentity | None:
        """The QEMU that writes this VM's console: its path is an argument of nobody else."""
        found = proc.find_by_argument(args.console(paths))
        return found[0] if found else None

    def all(self, vms_dir: Path, sockets_dir: Path) -> list[tuple[str, ProcessIdentity]]:
        """Every QEMU that writes a console below ``vms_dir``, with its VM's id."""
        del sockets_dir
        return proc.find_named(functools.partial(args.whose, vms_dir))

    def left(self, vm_ids: Iterable[str]) -> frozenset[str]:
        """None: QEMU has no more than its process."""
        del vm_ids
        return frozenset()

    async def release(self, paths: VmPaths) -> None:
        """Nothing: QEMU has no more than its process."""


def _died(request: LaunchRequest, returncode: int | None, log_from: int) -> HostLacksError:
    how = "ended" if returncode is None else host_exec.describe_exit(returncode)
    own = printable_tail(request.paths.vmm_log, _LOG_LINES, since_bytes=log_from)
    guest = printable_tail(request.paths.console_log, _CONSOLE_LINES)
    return HostLacksError(
        f"QEMU for VM {request.name} {how} before it was up",
        detail="\n".join(filter(None, (own, guest and f"last lines of the console:\n{guest}"))),
        hint="banger doctor",
    )


def _socket_paths(paths: VmPaths) -> list[Path]:
    bulk = [paths.bulk_socket(number) for number in range(args.BULK_PORTS)]
    return [paths.qmp_socket, paths.agent_socket, *bulk]


def _prepare_logs(paths: VmPaths) -> int:
    """Make the console private before QEMU makes it readable to all; the size of the VMM's log, where this run begins."""
    os.close(os.open(paths.console_log, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600))
    return fs.length_bytes(paths.vmm_log)


def _listen(path: Path, undo: UndoStack) -> socket.socket:
    """A listening socket at ``path`` for this user only; a stale one in its place is replaced."""
    check_socket_path(path)
    path.unlink(missing_ok=True)
    listener = socket.socket(socket.AF_UNIX)
    undo.push("close the listener", listener.close)
    listener.bind(str(path))
    undo.push(f"remove {path.name}", lambda: path.unlink(missing_ok=True))
    path.chmod(0o600)
    listener.listen(_BACKLOG)
    return listener
