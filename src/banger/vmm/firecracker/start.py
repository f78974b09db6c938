"""How Firecracker is started: in its jailer where root is and a jailer, else confined by banger itself, or unconfined for who wants that."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from banger.host import cgroup, confine, elf, fs, jail, namespaces
from banger.host.confine import Confined, Policy
from banger.host.confine_plan import Confinement
from banger.host.jail_plan import Jail
from banger.host.namespaces import NamespacePair
from banger.host.undo import UndoStack
from banger.model.machine import LaunchRequest
from banger.model.units import MIB
from banger.vmm import confinement
from banger.vmm.confinement import ProgramFiles
from banger.vmm.firecracker import config
from banger.vmm.launch import give_files

OVERHEAD_MIB = (
    128  # Firecracker's own: 5 MiB and its page tables, and what the kernel counts for a busy disk
)
PROCESSES = 64  # threads: one a vCPU, two of Firecracker's, a pool that io_uring may make


class Programs(Protocol):
    """What was found on this host."""

    @property
    def firecracker(self) -> Path:
        """The VMM."""
        ...

    @property
    def jailer(self) -> Path | None:
        """Its jailer, if there is one."""
        ...


FindPrograms = Callable[[], Programs]


async def start(
    programs: Programs, request: LaunchRequest, policy: Policy, undo: UndoStack
) -> Confined:
    """Start Firecracker for ``request``, its stdout and stderr appended to the console's log; ``undo`` gets what has to be undone."""
    log_file = request.paths.console_log
    if policy is Policy.OFF:
        return _unconfined(programs.firecracker, request)
    if os.geteuid() == 0 and programs.jailer is not None:
        return await _jailed(programs.firecracker, programs.jailer, request, undo)
    files = ProgramFiles(await asyncio.to_thread(elf.needed, programs.firecracker))
    argv = config.argv(programs.firecracker, request.vm_id, request.paths)
    may = confinement.firecracker(request, files)
    confined = await confine.start(argv, may, log=log_file)
    if os.geteuid() == 0:
        return _warned(
            confined,
            "there is no jailer beside Firecracker: it has root's user id, without its powers",
        )
    return confined


def _unconfined(program: Path, request: LaunchRequest) -> Confined:
    argv = config.argv(program, request.vm_id, request.paths)
    inside = request.network.namespaces
    before = namespaces.enter(NamespacePair(*inside)) if inside else []
    return confine.start_unconfined(
        [*before, *argv], log=request.paths.console_log, keep=inside or ()
    )


async def _jailed(program: Path, jailer: Path, request: LaunchRequest, undo: UndoStack) -> Confined:
    paths = request.paths
    number = jail.own_ids().of(request.index)
    fs.make_private_dir(paths.jail)
    undo.push("take the VM's files back", partial(give_files, request, os.geteuid(), os.getegid()))
    give_files(request, number, number)
    may = confinement.firecracker(request, ProgramFiles(()))
    group, warning = await _cgroup(request, may)
    if group is not None:
        undo.push("remove the cgroup", partial(cgroup.remove, request.vm_id))
    tap = request.network.tap_name if may.namespaces else ""
    made = Jail(request.vm_id, jailer, program, paths.jail, number, number, tap)
    confined = await jail.start(
        made, may, config.arguments(paths), log=paths.console_log, cgroup=group
    )
    return _warned(confined, warning)


async def _cgroup(request: LaunchRequest, may: Confinement) -> tuple[Path | None, str]:
    """A cgroup, or what to say where there can be none."""
    answer = cgroup.probe()
    if not answer:
        return None, f"no limit of its memory and processes by the host: {answer.why}"
    memory_bytes = (request.spec.memory_mib + OVERHEAD_MIB) * MIB
    processes = min(PROCESSES + request.spec.vcpus, may.limits.processes)
    return await cgroup.create(request.vm_id, memory_bytes, processes), ""


def _warned(confined: Confined, warning: str) -> Confined:
    return replace(confined, warning="; ".join(filter(None, (confined.warning, warning))))
