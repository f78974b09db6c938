"""Starts Firecracker for a VM and finds it again. It makes its sockets itself, in a directory that only its user may enter."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from functools import partial
from pathlib import Path

from banger.host import cgroup, jail, probe, proc
from banger.host.confine import Confined, Policy
from banger.host.confine_launch import EndedAtOnceError
from banger.host.inotify import watching
from banger.host.paths import check_socket_path
from banger.host.undo import UndoStack
from banger.model.clock import Deadline
from banger.model.errors import GuestNotReadyError, HostLacksError, RefusedError
from banger.model.machine import DiskFormat, LaunchRequest, VmPaths
from banger.model.process import ProcessIdentity
from banger.vmm.console import printable_tail
from banger.vmm.firecracker import config
from banger.vmm.firecracker.api import FaultError
from banger.vmm.firecracker.binary import inspect
from banger.vmm.firecracker.bodies import Action, Body
from banger.vmm.firecracker.outcome import describe, is_noise
from banger.vmm.firecracker.process import RunningFirecracker
from banger.vmm.firecracker.start import FindPrograms, start
from banger.vmm.launch import check_readable, or_ended, take_files_back

API_S = 10.0
CONFIGURE_S = 5.0
START_S = 60.0  # answered when the kernel is loaded and runs: 5 s where KVM itself is emulated
_LOOK_AGAIN_S = 0.02  # it may be there and not listen yet
_LOG_LINES, _CONSOLE_LINES = 10, 5


class FirecrackerVmm:
    """The Firecracker backend. ``find_programs`` gives the programs' paths, or raises HostLacksError; ``policy``: whether it is confined."""

    name = "firecracker"
    root_formats = (DiskFormat.RAW,)
    named_tap = True

    def __init__(self, find_programs: FindPrograms, *, policy: Policy = Policy.AUTO) -> None:
        self._find_programs = find_programs
        self._policy = policy

    async def check(self) -> None:
        """HostLacksError if there is no usable Firecracker, or no KVM for it."""
        programs = await asyncio.to_thread(self._find_programs)
        binary = await asyncio.to_thread(inspect, programs.firecracker)
        if binary.needs_kvm and not (kvm := await asyncio.to_thread(probe.kvm)):
            probe.kvm.cache_clear()  # it may be switched on before the next try
            raise HostLacksError(
                "Firecracker needs KVM, which does not work here", detail=kvm.why, hint=kvm.hint
            )

    async def launch(self, request: LaunchRequest) -> RunningFirecracker:
        """Start Firecracker, make the VM and let it run; on failure nothing is left."""
        paths = request.paths
        programs = await asyncio.to_thread(self._find_programs)
        binary = await asyncio.to_thread(inspect, programs.firecracker)
        bodies = config.build(request, binary.version)
        check_readable(request, request.boot.kernel)
        take_files_back(request)
        for path in (paths.api_socket, paths.vsock_socket):
            check_socket_path(path)
        if (other := self.find(paths)) is not None:  # whose sockets would be replaced
            raise RefusedError(
                f"VM {request.name} runs already, as pid {other.pid}",
                hint=f"banger vm stop {request.name}",
            )
        async with UndoStack() as undo:
            _make_room(paths, undo)
            try:
                confined = await start(programs, request, self._policy, undo)
            except EndedAtOnceError as error:
                raise _died(request, error.returncode) from error
            undo.push("end Firecracker", lambda: proc.kill(confined.identity))
            vmm = RunningFirecracker(confined, paths)
            undo.push("let go of Firecracker", vmm.close)
            started = asyncio.Event()
            outcome = await or_ended(vmm, _bring_up(request, vmm, bodies, started))
            if outcome is not None and not started.is_set():  # else its guest has had its chance
                raise _died(request, outcome.returncode)
            undo.release()
            return vmm

    async def adopt(self, identity: ProcessIdentity, paths: VmPaths) -> RunningFirecracker | None:
        """Take over a Firecracker that an earlier daemon started. Its API may be stuck: it is asked only when it is needed."""
        return RunningFirecracker(Confined(identity, ""), paths) if proc.alive(identity) else None

    def find(self, paths: VmPaths) -> ProcessIdentity | None:
        """The Firecracker whose API this VM's is: its socket is an argument of nobody else."""
        found = proc.find_by_argument(*config.api_words(paths), ours=jail.ours)
        return found[0] if found else None

    def all(self, vms_dir: Path, sockets_dir: Path) -> list[tuple[str, ProcessIdentity]]:
        """Every Firecracker whose API is below ``sockets_dir``, with its VM's id."""
        del vms_dir
        return proc.find_named(partial(config.whose, sockets_dir), ours=jail.ours)

    def left(self, vm_ids: Iterable[str]) -> frozenset[str]:
        """Those that have a cgroup, and others whose cgroup is deserted. Those of other daemons of root lie there too: one of an unknown VM
        may be in use.
        """
        there = frozenset(vm_id for vm_id in vm_ids if cgroup.is_there(vm_id))
        return there | cgroup.deserted() if _has_cgroups() else there

    async def release(self, paths: VmPaths) -> None:
        """Remove the cgroup, which is named by the VM's id as the directory is."""
        if _has_cgroups():
            await cgroup.remove(paths.state.name)


def _has_cgroups() -> bool:
    """Whether VMs get cgroups here, and may lose them."""
    return os.geteuid() == 0 and bool(cgroup.probe())


def _make_room(paths: VmPaths, undo: UndoStack) -> None:
    """No stale sockets, which Firecracker would not replace, and an empty log, which it would write over from its start."""
    for path in (paths.api_socket, paths.vsock_socket):
        path.unlink(missing_ok=True)
        undo.push(f"remove {path.name}", partial(path.unlink, missing_ok=True))
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(paths.vmm_log, flags, 0o600)
    os.fchmod(descriptor, 0o600)
    os.close(descriptor)


async def _bring_up(
    request: LaunchRequest, vmm: RunningFirecracker, bodies: list[Body], started: asyncio.Event
) -> None:
    """Make the VM; ``started`` is set once its guest runs."""
    await _until_reached(vmm, request.paths.api_socket)
    for body in bodies:
        try:
            await vmm.send(body, START_S if isinstance(body, Action) else CONFIGURE_S)
        except FaultError as error:
            raise _refused(request, body, error) from error
    started.set()
    for path in (request.paths.api_socket, request.paths.vsock_socket):
        _make_private(path)


def _make_private(path: Path) -> None:
    """Only its owner may connect to the socket ``path``. Firecracker may write to its directory: nothing else in its place is touched."""
    try:
        descriptor = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:  # a guest may have ended it already
        return
    try:
        if stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            Path(f"/proc/self/fd/{descriptor}").chmod(0o600)
    finally:
        os.close(descriptor)


def _refused(request: LaunchRequest, body: Body, error: FaultError) -> HostLacksError:
    return HostLacksError(
        f"Firecracker cannot run VM {request.name}",
        detail=f"{body.endpoint.method} {body.target}: {error.detail}",
        hint=_hint(request, error.detail),
    )


def _hint(request: LaunchRequest, fault: str) -> str:
    """One next step for what Firecracker says."""
    if "KVM" in fault and "ermission denied" in fault:
        return "sudo usermod -aG kvm $USER, then log in again"
    if "kernel" in fault.lower() or "initrd" in fault.lower():
        return f"banger image build {request.boot.manifest.name} --force"
    return "banger doctor"


def _died(request: LaunchRequest, returncode: int | None) -> HostLacksError:
    """No guest has run: what is on its console Firecracker has said itself, or the loader before it."""
    how = "ended" if returncode is None else describe(returncode)
    own = printable_tail(request.paths.vmm_log, _LOG_LINES, without=is_noise)
    errors = printable_tail(request.paths.console_log, _CONSOLE_LINES)
    return HostLacksError(
        f"Firecracker for VM {request.name} {how} before it was up",
        detail="\n".join(filter(None, (own, errors))),
        hint="banger doctor",
    )


async def _until_reached(vmm: RunningFirecracker, path: Path) -> None:
    deadline = Deadline.after(API_S)
    with watching(path.parent) as changed:
        while True:
            changed.clear()
            try:
                await vmm.connect()
            except (FileNotFoundError, ConnectionRefusedError) as error:
                if deadline.passed:
                    raise GuestNotReadyError(
                        f"Firecracker did not open its API within {API_S:g} s",
                        detail=f"socket {path}: {error.strerror}",
                        hint="banger doctor",
                    ) from error
            else:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_AGAIN_S):
                    await changed.wait()
