"""The life of a VM, and which request is welcome in which state.

::

                 create                 start
    (nothing) ──────────> creating ──> starting ──> running ⇄ paused
                              │            │           │  stop, guest power-off
                              │            │           v
                              │            └──────> stopping ──> stopped ──start──> starting
                              └── create failed ──> (nothing: undone)
    any of stopped, failed, running, paused ── delete ──> deleting ──> (nothing)
    running ── VMM crashed ──> failed ── start ──> starting

``failed`` is a stopped VM whose last run ended badly: it can be started again, shown and deleted. The states in
the middle (creating, starting, stopping, deleting) belong to exactly one operation; a VM found in one of them
with no operation running is brought to ``stopped`` or removed by reconcile.
"""

from __future__ import annotations

from enum import StrEnum

from banger.model.errors import RefusedError


class VmState(StrEnum):
    """Where a VM is in its life (see the diagram above)."""

    CREATING = "creating"
    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    PAUSED = "paused"
    STOPPING = "stopping"
    FAILED = "failed"
    DELETING = "deleting"


class WaitFor(StrEnum):
    """How far a start is waited for: until the guest's init runs, its agent answers, or all services do."""

    BOOTED = "booted"
    AGENT = "agent"
    SERVICES = "services"


class OperationState(StrEnum):
    """Where an operation is; the last three are final."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def final(self) -> bool:
        """Whether nothing more will happen."""
        return self in {OperationState.SUCCEEDED, OperationState.FAILED, OperationState.CANCELLED}


AT_REST = frozenset({VmState.STOPPED, VmState.FAILED})


def not_running(name: str, state: VmState) -> RefusedError:
    """What to say of a request that needs a guest, when VM ``name`` is in ``state``."""
    match state:
        case VmState.PAUSED:
            hint = f"banger vm resume {name}"
        case VmState.CREATING | VmState.STARTING | VmState.RUNNING:
            hint = f"it is not ready yet; banger vm health {name} says when it is"
        case VmState.DELETING:
            hint = "banger vm list"
        case _:
            hint = f"banger vm start {name}"
    return RefusedError(f"VM {name} is {state}", hint=hint)
