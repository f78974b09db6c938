"""Starts a program in Firecracker's jailer, as a user of its own; for root. See `banger.host.jail_plan` and docs/explanation/confinement.md."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from banger.host import jail_plan
from banger.host.confine import Confined
from banger.host.confine_launch import Launch, StepFailedError
from banger.host.confine_plan import Confinement
from banger.host.jail_plan import Jail
from banger.model.errors import HostLacksError

_SUBORDINATE = (Path("/etc/subuid"), Path("/etc/subgid"))


def own_id(index: int) -> int:
    """The user and group id of the VM with lease number ``index``; see `jail_plan.own_id`."""
    return jail_plan.own_id(index, *(_text(path) for path in _SUBORDINATE))


def _text(path: Path) -> str:
    with suppress(OSError):
        return path.read_text()
    return ""


def own(paths: Iterable[Path], uid: int, gid: int) -> None:
    """Give ``paths`` to a VM's user, or back to ours; links are not followed, what is not there is left out."""
    for path in paths:
        with suppress(FileNotFoundError):
            os.chown(path, uid, gid, follow_symlinks=False)


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
