"""What becomes of a request, given the VM's state and what is already queued for it. Pure: no clock, no locks, no I/O.

A VM's worker does one operation at a time, in the order of admission. ``admit`` answers for a new request: do it (`Accept`), it
is so already or will be (`AlreadySo`), or no, because (`Refuse`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from banger.model.state import AT_REST, VmState


class Verb(StrEnum):
    """The operations on one VM; the value is the operation's kind."""

    CREATE = "vm.create"
    START = "vm.start"
    STOP = "vm.stop"
    RESTART = "vm.restart"
    DELETE = "vm.delete"
    SET = "vm.set"
    ADJUST = "vm.adjust"
    PAUSE = "vm.pause"
    RESUME = "vm.resume"
    PROMOTE = "vm.promote"
    MEND = "vm.mend"


@dataclass(frozen=True, slots=True)
class Queued:
    """An operation that runs (the first) or waits."""

    verb: Verb
    operation_id: str


@dataclass(frozen=True, slots=True)
class Accept:
    """Queue it; ``cancel_running`` says that the operation now running would only stand in its way."""

    cancel_running: bool = False


@dataclass(frozen=True, slots=True)
class AlreadySo:
    """Nothing to do: true now (None) or brought about by ``operation_id``."""

    operation_id: str | None = None


@dataclass(frozen=True, slots=True)
class Refuse:
    """Not in this state; ``reason`` completes "VM x …", ``hint`` is a command with ``{name}``."""

    reason: str
    hint: str = ""


Decision = Accept | AlreadySo | Refuse

_QUICK = frozenset({Verb.SET, Verb.ADJUST, Verb.PAUSE, Verb.RESUME})
_AFTER = {
    Verb.CREATE: VmState.RUNNING,
    Verb.START: VmState.RUNNING,
    Verb.RESTART: VmState.RUNNING,
    Verb.RESUME: VmState.RUNNING,
    Verb.STOP: VmState.STOPPED,
    Verb.PAUSE: VmState.PAUSED,
    Verb.DELETE: VmState.DELETING,
}
_IS = {
    VmState.CREATING: "is being created",
    VmState.STARTING: "is starting",
    VmState.STOPPING: "is stopping",
    VmState.DELETING: "is being deleted",
    VmState.STOPPED: "is stopped",
    VmState.FAILED: "is stopped (its last run failed)",
    VmState.RUNNING: "is running",
    VmState.PAUSED: "is paused",
}


_SETTLED = AT_REST | {VmState.RUNNING, VmState.PAUSED}


def expected(state: VmState, queue: Sequence[Queued]) -> VmState:
    """The state once everything queued has succeeded."""
    for item in queue:
        state = _AFTER.get(item.verb, state)
    return state


def admit(state: VmState, queue: Sequence[Queued], verb: Verb) -> Decision:
    """Decide on ``verb`` for a VM in ``state`` whose worker has ``queue`` (running operation first)."""
    last = queue[-1].operation_id if queue else None
    deleting = any(item.verb is Verb.DELETE for item in queue)
    if verb is not Verb.DELETE and (deleting or state is VmState.DELETING):
        return Refuse(_IS[VmState.DELETING], "banger vm delete {name}")
    if deleting:
        return AlreadySo(last)
    coming = expected(state, queue)
    match verb:
        case Verb.DELETE:
            return Accept(cancel_running=bool(queue))
        case Verb.START:
            return _admit_start(coming, last)
        case Verb.STOP:
            return _admit_stop(coming, queue, last)
        case Verb.RESTART:
            in_hand = bool(queue) and queue[-1].verb in {Verb.RESTART, Verb.CREATE}
            return AlreadySo(last) if in_hand else Accept()
        case Verb.PAUSE | Verb.RESUME:
            return _admit_pause(coming, verb, last)
        case Verb.SET | Verb.PROMOTE:
            return _admit_at_rest(state, queue, last)
        case Verb.ADJUST:
            return _admit_adjust(state, queue, last)
        case Verb.CREATE | Verb.MEND:
            return _admit_alone(verb, queue, last)


def _admit_alone(verb: Verb, queue: Sequence[Queued], last: str | None) -> Decision:
    """What is never done beside or after something else."""
    if verb is Verb.CREATE:
        return Refuse("exists already")
    return Refuse("has an operation in hand", f"banger op wait {last}") if queue else Accept()


def _admit_at_rest(state: VmState, queue: Sequence[Queued], last: str | None) -> Decision:
    if queue and state in AT_REST:
        return Refuse("has an operation in hand", f"banger op wait {last}")
    at_rest = not queue and state in AT_REST
    return Accept() if at_rest else Refuse(_IS[state], "banger vm stop {name}")


def _admit_start(coming: VmState, last: str | None) -> Decision:
    if coming is VmState.PAUSED:
        return Refuse(_IS[coming], "banger vm resume {name}")
    return AlreadySo(last) if coming is VmState.RUNNING else Accept()


def _admit_stop(coming: VmState, queue: Sequence[Queued], last: str | None) -> Decision:
    if any(item.verb is Verb.CREATE for item in queue):
        return Refuse(
            _IS[VmState.CREATING], f"banger op wait {last}, or: banger vm delete {{name}}"
        )
    if coming in AT_REST:
        return AlreadySo(last)
    return Accept(cancel_running=bool(queue) and queue[0].verb in {Verb.START, Verb.RESTART})


def _admit_adjust(state: VmState, queue: Sequence[Queued], last: str | None) -> Decision:
    """Running or at rest, and nothing in hand that leads from one to the other."""
    if any(item.verb not in _QUICK for item in queue):
        busy = "has an operation in hand" if state in _SETTLED else _IS[state]
        return Refuse(busy, f"banger op wait {last}")
    return Accept() if state in _SETTLED else Refuse(_IS[state], "banger op list")


def _admit_pause(coming: VmState, verb: Verb, last: str | None) -> Decision:
    if coming is VmState.PAUSED and verb is Verb.PAUSE:
        return AlreadySo(last)
    # Resume is welcome to a running VM too: its VMM may have stopped it, because a disk was full.
    if coming in {VmState.RUNNING, VmState.PAUSED}:
        return Accept()
    return Refuse(_IS[coming], "banger vm start {name}")
