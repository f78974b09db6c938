"""A VM in memory: its record, its lease, and what of it runs. Only its worker changes it."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass, field
from pathlib import Path

from banger.engine.events import Hub, VmChange
from banger.engine.guest_ports import Guest
from banger.engine.ports import RunningVmm, Store, Vmm
from banger.model.errors import BangerError
from banger.model.lease import Lease
from banger.model.machine import NetworkAttachment, StorageChoice, VmmExit, VmPaths
from banger.model.record import ErrorRecord, VmRecord
from banger.model.spec import Forward
from banger.model.state import VmState

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Places:
    """Where the VMs of this daemon live."""

    state_dir: Path
    runtime_dir: Path

    def of(self, vm_id: str) -> VmPaths:
        """The directories of one VM."""
        return VmPaths(self.state_dir / "vms" / vm_id, self.runtime_dir / "vms" / vm_id)


@dataclass(slots=True, eq=False)
class Machine:
    """One VM. ``vmm``, ``guest`` and ``exited`` belong to its present run; ``ready`` says that its services answered,
    ``relayed`` which forwards are open.

    ``backend`` is the one that validate picked for the run that begins, ``storage`` what it chose for disks that are not made yet;
    ``store_trouble`` says why the root disk's store cannot grow any more, ``notes`` what its guest did too much of in this run.
    """

    record: VmRecord
    lease: Lease | None
    paths: VmPaths
    store: Store
    hub: Hub
    backend: Vmm | None = None
    storage: StorageChoice | None = None
    store_trouble: str = ""
    attachment: NetworkAttachment | None = None
    vmm: RunningVmm | None = None
    guest: Guest | None = None
    exited: asyncio.Future[VmmExit] | None = None
    watcher: asyncio.Task[None] | None = None
    checker: asyncio.Task[None] | None = None
    ready: bool = False
    gone: bool = False
    booted_at: str | None = None
    services: dict[str, bool] = field(default_factory=dict)
    relayed: list[Forward] = field(default_factory=list)
    wake: asyncio.Event = field(default_factory=asyncio.Event)
    notes: dict[str, str] = field(default_factory=dict)

    @property
    def id(self) -> str:
        """The VM's id."""
        return self.record.id

    @property
    def name(self) -> str:
        """The VM's name."""
        return self.record.name

    @property
    def state(self) -> VmState:
        """The VM's state."""
        return self.record.state

    @property
    def half_way(self) -> bool:
        """Whether only an operation that runs could explain this state."""
        if self.state in {VmState.RUNNING, VmState.PAUSED}:
            return self.vmm is None
        return self.state in {VmState.CREATING, VmState.STARTING, VmState.STOPPING}

    def save(self, **changes: object) -> None:
        """Change the record and store it."""
        record = self.record.but(**changes)
        self.store.update_vm(record)
        self._replace(record)

    def fail(self, error: BaseException) -> None:
        """Go to failed whatever happens: where the store cannot be written, in memory, so that the VM can still be deleted."""
        record = self.record.but(state=VmState.FAILED, last_error=ErrorRecord.of(error))
        try:
            self.store.update_vm(record)
        except BangerError as unwritten:
            log.warning("VM %s: that it failed is not stored: %s", self.id, unwritten)
        self._replace(record)
        self.ready = False

    def _replace(self, record: VmRecord) -> None:
        before, self.record = self.record, record
        if (before.state, before.name) != (record.state, record.name):
            trouble = "" if record.last_error is None else record.last_error.what
            self.hub.tell(VmChange(record.id, record.name, record.state, trouble))

    def note(self, what: str, sentence: str) -> None:
        """Its guest did too much of something: shown with the VM until its next run, logged and told once."""
        if self.notes.get(what) != sentence:
            self.notes[what] = sentence
            log.warning("VM %s: %s", self.id, sentence)
            self.hub.tell(VmChange(self.id, self.name, self.state, sentence))

    def forget(self) -> None:
        """Remove the VM from the store: it is no more."""
        self.store.delete_vm(self.id)
        self.gone = True
        self.hub.tell(VmChange(self.id, self.name, None))

    def enter(self, state: VmState, *, error: ErrorRecord | None = None) -> None:
        """Go to ``state``; an error stays visible until the next run begins."""
        if state is VmState.STARTING:
            self.ready, self.booted_at, self.services, self.notes = False, None, {}, {}
            self.save(state=state, last_error=None)
        elif error is not None:
            self.save(state=state, last_error=error)
        else:
            self.save(state=state)
