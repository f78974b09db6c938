"""Starts a program that can do little harm to this host: in namespaces with only the listed files, under Landlock, without privileges.

`start` returns when the program has begun, with its process, a child of this one. What the program may have is a `Confinement`; the steps
to it are in `banger.host.confine_plan`, and `banger.host.confine_child` does them. See docs/explanation/confinement.md.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from banger.host import exec as host_exec
from banger.host import landlock, proc
from banger.host.confine_launch import EndedAtOnceError, Launch, StepFailedError
from banger.host.confine_plan import (
    Confinement,
    Limits,
    Step,
    by_landlock_alone,
    in_namespaces,
)
from banger.host.namespaces import restriction_hint
from banger.host.probe import Answer
from banger.model.errors import HostLacksError
from banger.model.process import ProcessIdentity

_ACCEPT = 'or accept VMs that are not confined: confine = "off" in the configuration'
_OFF = "the VMM runs unconfined, because confine is off: who breaks out of it is the user that started the daemon"


class Policy(StrEnum):
    """What the user wants: ``auto``, confined as well as this host can and never not at all; or ``off``."""

    AUTO = "auto"
    OFF = "off"


@dataclass(frozen=True, slots=True)
class Confined:
    """A program that has begun. ``how`` says in few words how it is confined, ``warning`` what its user should know."""

    identity: ProcessIdentity
    how: str
    warning: str = ""


async def start(
    argv: Sequence[str],
    confinement: Confinement,
    *,
    log: Path,
    keep: Sequence[int] = (),
) -> Confined:
    """Start ``argv`` with the descriptors ``keep`` (same numbers), stdin null, stdout and stderr appended to ``log``.

    HostLacksError if it cannot be confined here, EndedAtOnceError if it is gone already; nothing is left then. The caller reaps the
    process with `banger.host.proc`.
    """
    root = os.geteuid() == 0
    enter = () if confinement.namespaces is None else confinement.namespaces.descriptors
    try:
        steps = in_namespaces(confinement, root=root)
        identity, notes = await _start(steps, argv, log, keep, enter)
        return Confined(identity, ", ".join(["confined", *notes]))
    except StepFailedError as failure:
        refused = await probe_confinement()
        if refused.ok or enter:
            raise _cannot(argv[0], failure, refused) from failure
    try:
        steps = by_landlock_alone(confinement, root=root)
        identity, notes = await _start(steps, argv, log, keep, ())
    except StepFailedError as failure:
        raise _cannot(argv[0], failure, refused) from failure
    return Confined(identity, ", ".join(["Landlock only", *notes]), _landlock_only(refused))


async def probe_confinement() -> Answer:
    """Whether namespaces can confine a program here: found out by doing all but executing one. About 40 ms; leaves nothing."""
    nothing = Confinement(code=(), limits=Limits(1 << 30, 1 << 32, 64), devices=("/dev/null",))
    try:
        async with Launch(Path(os.devnull)) as launch:
            await launch.until_ready(in_namespaces(nothing, root=os.geteuid() == 0), [])
    except (StepFailedError, TimeoutError) as failure:
        return Answer(ok=False, why=str(failure), hint=restriction_hint() or "banger doctor")
    return Answer(ok=True, found=", ".join(launch.notes))


def probe_landlock() -> Answer:
    """Whether the kernel has Landlock, and which version of it."""
    version = landlock.abi()
    if version:
        return Answer(ok=True, found=f"ABI {version}")
    return Answer(
        ok=False,
        why="the kernel has no Landlock, or its command line switches it off",
        hint="put landlock first into lsm= on the kernel's command line",
    )


async def _start(
    steps: Sequence[Step], argv: Sequence[str], log: Path, keep: Sequence[int], enter: Sequence[int]
) -> tuple[ProcessIdentity, list[str]]:
    try:
        async with Launch(log, keep=keep, enter=enter) as launch:
            await launch.until_ready(steps, argv)
            return await launch.begin(), launch.notes
    except TimeoutError as error:
        raise StepFailedError("the launcher did not come to an end") from error


def start_unconfined(argv: Sequence[str], *, log: Path, keep: Sequence[int] = ()) -> Confined:
    """As `start`, for a user who wants the program not confined: `Policy.OFF`."""
    child = host_exec.spawn(argv, log=log, pass_fds=keep)
    child.returncode = 0  # Popen must not reap it: host.proc does, which waits by pidfd
    identity = proc.identify(child.pid)
    if identity is None:
        raise EndedAtOnceError(argv[0], proc.reap(child.pid))
    return Confined(identity, "not confined", _OFF)


def _cannot(program: str, failure: StepFailedError, refused: Answer) -> HostLacksError:
    lines = [str(failure), refused.why, _ACCEPT if not refused.ok else ""]
    return HostLacksError(
        f"{program} cannot be confined on this host",
        detail="\n".join(dict.fromkeys(filter(None, lines))),
        hint=refused.hint or "banger doctor",
    )


def _landlock_only(refused: Answer) -> str:
    return (
        f"the VMM is confined by Landlock and system call filters alone, because this host refuses namespaces ({refused.why}): "
        f"who breaks out of it can connect to sockets of your user. To change that: {refused.hint}"
    )
