"""What the store keeps: VMs, operations with their stages, and the ledger of host effects. Values only."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Self

from banger.model.errors import BangerError, from_code
from banger.model.process import ProcessIdentity
from banger.model.spec import Forward, VmSpec
from banger.model.state import OperationState, VmState


@dataclass(frozen=True, slots=True)
class ErrorRecord:
    """A `BangerError` as data."""

    code: str
    what: str
    detail: str = ""
    hint: str = ""

    @classmethod
    def of(cls, error: BaseException) -> Self:
        """The record of any exception; one that is not ours is an internal failure, named by its type."""
        if isinstance(error, BangerError):
            return cls(error.code, error.what, error.detail, error.hint)
        return cls(
            "failure",
            f"internal error: {type(error).__name__}",
            detail=str(error),
            hint="see: banger daemon logs",
        )

    def to_error(self) -> BangerError:
        """The exception again."""
        return from_code(self.code, self.what, detail=self.detail, hint=self.hint)


@dataclass(frozen=True, slots=True)
class RunRecord:
    """One run of a VM: its VMM process and how it is connected. Times are RFC 3339 UTC."""

    process: ProcessIdentity
    vmm: str
    accel: str
    network: str
    started_at: str
    ip: str | None = None
    warning: str = ""


@dataclass(frozen=True, slots=True)
class VmRecord:
    """A VM as the store knows it. ``forwards`` have their final host ports; ``run`` is None while there is no VMM.

    ``storage`` is the driver of its root disk; empty before there are disks, and of VMs of older releases.
    """

    id: str
    name: str
    state: VmState
    created_at: str
    image_id: str
    spec: VmSpec
    forwards: tuple[Forward, ...] = ()
    run: RunRecord | None = None
    last_error: ErrorRecord | None = None
    storage: str = ""

    def but(self, **changes: object) -> VmRecord:
        """A copy with ``changes``."""
        return replace(self, **changes)  # type: ignore[arg-type]  # dataclass fields by name


@dataclass(frozen=True, slots=True)
class StageRecord:
    """One stage of an operation; ``duration_ms`` is None while it runs."""

    name: str
    state: OperationState
    started_at: str
    duration_ms: float | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """An operation; ``target`` is a VM's or image's id, ``target_name`` the name it had at the time."""

    id: str
    kind: str
    target: str
    target_name: str
    state: OperationState
    created_at: str
    duration_ms: float | None = None
    stages: tuple[StageRecord, ...] = ()
    error: ErrorRecord | None = None


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """An effect on the host that belongs to a VM: intended before it is tried, done after, gone when undone."""

    vm_id: str
    effect: str
    done: bool
