"""Control groups of VMMs (cgroup v2): what one VM may take of the host's memory and processes. For root; where there is no
cgroup v2 with both controllers, VMs run without and say so.
"""

from __future__ import annotations

import asyncio
import errno
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from banger.host.probe import Answer
from banger.model.clock import Deadline
from banger.model.errors import HostLacksError
from banger.model.ids import is_id

MOUNT: Final = Path("/sys/fs/cgroup")
PARENT: Final = "banger"
CONTROLLERS: Final = ("memory", "pids")
_GONE_S, _LOOK_AGAIN_S = 2.0, 0.02
DESERTED_S: Final = 60.0
"""For so long a cgroup without a process may be somebody's who is about to use it."""


def probe(mount: Path = MOUNT) -> Answer:
    """Whether ``mount`` is cgroup v2 with the controllers that limit a VMM (Documentation/admin-guide/cgroup-v2.rst)."""
    try:
        there = (mount / "cgroup.controllers").read_text().split()
    except OSError as error:
        return Answer(
            ok=False,
            why=f"{mount} is not cgroup v2 ({error.strerror})",
            hint="boot the host with systemd.unified_cgroup_hierarchy=1",
        )
    missing = [name for name in CONTROLLERS if name not in there]
    if missing:
        return Answer(
            ok=False,
            why=f"cgroup v2 lacks the controllers {', '.join(missing)}",
            hint="take cgroup_disable= off the kernel's command line",
        )
    return Answer(ok=True, found=str(mount))


async def create(vm_id: str, memory_bytes: int, processes: int, mount: Path = MOUNT) -> Path:
    """A cgroup for one VM; HostLacksError if the kernel refuses. An empty one that an earlier run left is used again."""
    group = mount / PARENT / vm_id
    try:
        (mount / PARENT).mkdir(exist_ok=True)
        for above in (mount, mount / PARENT):
            wanted = " ".join(f"+{name}" for name in CONTROLLERS)
            (above / "cgroup.subtree_control").write_text(wanted)
        group.mkdir(exist_ok=True)
        os.utime(group)  # one that is used again is young again
        (group / "memory.max").write_text(str(memory_bytes))
        (group / "memory.oom.group").write_text("1")
        (group / "pids.max").write_text(str(processes))
    except OSError as error:
        with suppress(OSError):  # the reason to tell is the first one
            await remove(vm_id, mount)
        raise HostLacksError(
            f"cgroup {group} cannot be made", detail=str(error), hint=f"ls -l {mount}"
        ) from error
    return group


def is_there(vm_id: str, mount: Path = MOUNT) -> bool:
    """Whether there is a cgroup of this VM."""
    return (mount / PARENT / vm_id).is_dir()


def deserted(mount: Path = MOUNT) -> frozenset[str]:
    """VMs, of whichever daemon, whose cgroup nobody uses: no process is in it, and nobody made it a moment ago to put one there."""
    try:
        groups = list((mount / PARENT).iterdir())
    except OSError:  # there are none
        return frozenset()
    return frozenset(group.name for group in groups if is_id(group.name) and _is_deserted(group))


def _is_deserted(group: Path) -> bool:
    """Its time is that of its making or later: the kernel may have forgotten it and seen it anew."""
    try:
        age_s = time.time() - group.stat().st_mtime  # noqa: TID251  compared with the file system's times
        events = (group / "cgroup.events").read_text().splitlines()
    except OSError:  # it went meanwhile
        return False
    return age_s > DESERTED_S and "populated 0" in events


async def remove(vm_id: str, mount: Path = MOUNT) -> None:
    """Remove the VM's cgroup; idempotent. A process that ended a moment ago may still count as a member: it is waited for, 2 s at most."""
    deadline = Deadline.after(_GONE_S)
    while True:
        try:
            (mount / PARENT / vm_id).rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or deadline.passed:
                raise
            await asyncio.sleep(_LOOK_AGAIN_S)
        else:
            return
