"""Control groups of VMMs (cgroup v2): what one VM may take of the host's memory and processes. For root; where there is no
cgroup v2 with both controllers, VMs run without and say so.
"""

from __future__ import annotations

import errno
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

from banger.host.probe import Answer
from banger.model.errors import HostLacksError

MOUNT: Final = Path("/sys/fs/cgroup")
PARENT: Final = "banger"
CONTROLLERS: Final = ("memory", "pids")
_GONE_S, _LOOK_AGAIN_S = 2.0, 0.02


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


def create(vm_id: str, memory_bytes: int, processes: int, mount: Path = MOUNT) -> Path:
    """A cgroup for one VM; HostLacksError if the kernel refuses. An empty one that an earlier run left is used again."""
    group = mount / PARENT / vm_id
    try:
        (mount / PARENT).mkdir(exist_ok=True)
        for above in (mount, mount / PARENT):
            wanted = " ".join(f"+{name}" for name in CONTROLLERS)
            (above / "cgroup.subtree_control").write_text(wanted)
        group.mkdir(exist_ok=True)
        (group / "memory.max").write_text(str(memory_bytes))
        (group / "memory.oom.group").write_text("1")
        (group / "pids.max").write_text(str(processes))
    except OSError as error:
        with suppress(OSError):  # the reason to tell is the first one
            remove(vm_id, mount)
        raise HostLacksError(
            f"cgroup {group} cannot be made", detail=str(error), hint=f"ls -l {mount}"
        ) from error
    return group


def remove(vm_id: str, mount: Path = MOUNT) -> None:
    """Remove the VM's cgroup; idempotent. A process that ended a moment ago may still count as a member: it is waited for, 2 s at most."""
    deadline = time.monotonic() + _GONE_S
    while True:
        try:
            (mount / PARENT / vm_id).rmdir()
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
            time.sleep(_LOOK_AGAIN_S)
        else:
            return
