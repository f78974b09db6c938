"""Starts a program in Firecracker's jailer, as a user of its own; for root. See `banger.host.jail_plan` and docs/explanation/confinement.md."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from banger.host import jail_plan
from banger.host.confine import Confined
from banger.host.confine_launch import Launch, StepFailedError
from banger.host.confine_plan import Confinement
from banger.host.jail_plan import Ids, Jail
from banger.model.errors import HostLacksError

_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))


def own_ids() -> Ids:
    """The ids of root's jails on this host; see `jail_plan.own_ids`."""
    return jail_plan.own_ids(*(_text(path) for path in _SUBORDINATE))


def ours(uid: int) -> bool:
    """Whether a process of this user can be a VMM of ours: it is our own, or root's and jailed."""
    return uid == os.geteuid() or (os.geteuid() == 0 and uid in own_ids())


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""


async def start(
    jail: Jail,
    confinement: Confinement,
    arguments: Sequence[str],
    *,
    log: Path,
    cgroup: Path | None,
) -> Confined:
    """Start ``jail.program`` with ``arguments`` in the jail, stdin null, stdout and stderr appended to ``log``.

    What it may write must belong to the jail's user. HostLacksError if the jail cannot be made; nothing is left then.
    """
    inside = confinement.namespaces
    enter = () if inside is None else (inside.network,)
    try:
        async with Launch(log, enter=enter) as launch:
            await launch.until_ready(
                jail_plan.steps(jail, confinement, cgroup),
                jail_plan.argv(jail, confinement, arguments),
            )
            identity = await launch.begin()
    except (StepFailedError, TimeoutError) as error:
        raise HostLacksError(
            f"the jail of VM {jail.vm_id} cannot be made", detail=str(error), hint="banger doctor"
        ) from error
    return Confined(identity, ", ".join([f"jailed as uid {jail.uid}", *launch.notes]))
