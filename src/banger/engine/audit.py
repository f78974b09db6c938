"""``banger audit``, and the same look every minute: where record and host differ, and what is done about it.

A look that an operation crossed says nothing about what that operation touched. What is done about a known VM is an operation on it,
``vm.mend``, which looks again when nothing else works on the VM; of a VM without record every inverse is idempotent.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from banger.engine.compare import compare
from banger.engine.dial import on_own_network
from banger.engine.effects import undo_effects
from banger.engine.engine import Engine
from banger.engine.events import BACKLOG, OperationChange, Residue, VmChange
from banger.engine.machine import Machine
from banger.engine.reconcile import recover
from banger.engine.survey import survey
from banger.host import fs
from banger.model.errors import BangerError, RefusedError
from banger.model.record import ErrorRecord, VmRecord
from banger.model.residue import Finding, KnownVm, OnRecord, Remedy
from banger.model.spec import VmSpec
from banger.model.state import VmState

log = logging.getLogger(__name__)
_TRIES = 3


@dataclass(frozen=True, slots=True)
class Fixed:
    """A finding and what became of it: ``did`` says what was done, ``error`` why it could not be."""

    finding: Finding
    fixed: bool = False
    did: str = ""
    error: ErrorRecord | None = None


class Audit:
    """Of one daemon. ``last`` counts what the newest look found, by kind."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._context = engine.context
        self._fixing = asyncio.Lock()
        self._told: set[tuple[str, str, str]] = set()
        self.last: Mapping[str, int] = {}

    async def look(self, *, deep: bool = True) -> list[Finding]:
        """What differs now; RefusedError if so much happens that no look is of one moment."""
        for _ in range(_TRIES):
            with self._context.board.hub.watch() as queue:
                machines = self._engine.machines()
                host = await survey(self._context, machines, deep=deep)
                if queue.qsize() >= BACKLOG:
                    continue
                touched = {machine.id for machine in machines}
                known = touched | {machine.id for machine in self._engine.machines()}
                changed = set()
                while not queue.empty():
                    happening = queue.get_nowait()
                    if isinstance(happening, OperationChange):
                        changed.add(happening.operation.target)
                    elif isinstance(happening, VmChange):
                        changed.add(happening.id)
                found = compare(self._on_record(frozenset(known | changed), changed), host)
            self.last = Counter(finding.kind for finding in found)
            return found
        raise RefusedError(
            "too much happens just now to compare record and host", hint="banger audit"
        )

    def _on_record(self, ids: frozenset[str], changed: set[str]) -> OnRecord:
        machines = self._engine.machines()
        quiet = [m for m in machines if m.id not in changed and not self._engine.busy(m)]
        busy = [m for m in machines if m not in quiet]
        ports = {f.key for m in machines for f in (*m.relayed, *m.record.forwards)}
        ports |= {f.key for m in busy for f in m.record.spec.forwards}
        if busy or changed:  # any free port may be theirs in a moment
            ports |= self._context.relays.open()
        return OnRecord(tuple(map(_known, quiet)), ids, frozenset(ports))

    async def fix(self) -> list[Fixed]:
        """Undo what is certainly ours and unrecorded, bring records of what is gone to the truth; what each finding came to."""
        async with self._fixing:
            done: dict[tuple[Remedy, str], Fixed] = {}
            results = []
            for finding in await self.look():
                group = (finding.remedy, finding.vm_id or finding.name)
                if group not in done:
                    done[group] = await self._fix(finding)
                first = done[group]
                results.append(Fixed(finding, first.fixed, first.did, first.error))
            return results

    async def _fix(self, finding: Finding) -> Fixed:
        if finding.remedy is Remedy.NONE:
            return Fixed(finding)
        try:
            did = await self._do(finding)
        except (BangerError, OSError, TimeoutError) as error:
            log.warning("audit: %s: %s", finding.what, error)
            return Fixed(finding, error=ErrorRecord.of(_told(error, finding)))
        log.info("audit: %s: %s", finding.what, did)
        return Fixed(finding, fixed=True, did=did)

    async def _do(self, finding: Finding) -> str:
        match finding.remedy:
            case Remedy.MEND | Remedy.DELETE:
                return await self._on_vm(finding)
            case Remedy.FORGET:
                return await self._forget(finding.vm_id)
            case Remedy.RECOVER:
                return await recover(self._engine, finding.vm_id)
            case Remedy.END if finding.stray is not None:
                await self._context.network.end_stray(finding.stray, self._context.store.leases)
                return f"{finding.stray.name} ended"
            case Remedy.CLOSE if finding.port is not None:
                protocol, port = finding.port
                await self._context.relays.remove(port, protocol=protocol)
                return f"port {port} closed"
            case _:
                return await self._sweep(finding)

    async def _sweep(self, finding: Finding) -> str:
        if finding.kind == "build":
            await self._context.images.sweep()
        else:
            path = self._context.places.state_dir / finding.name  # absolute already
            await asyncio.to_thread(fs.remove_tree, path)
        return f"{finding.name} removed"

    async def _on_vm(self, finding: Finding) -> str:
        machine = self._engine.resolve(finding.vm_id)
        deleting = finding.remedy is Remedy.DELETE
        record = self._engine.delete(machine) if deleting else self._engine.mend(machine)
        live = self._context.board.live(record.id)
        record = await live.wait() if live else record
        if record.error is not None:
            raise record.error.to_error()
        if deleting:
            return f"VM {machine.name} deleted"
        detail = (
            "is left alone: it runs"
            if machine.vmm
            else f"is {machine.state}, with nothing of a run"
        )
        return f"VM {machine.name} {detail}"

    async def _forget(self, vm_id: str) -> str:
        """Undo all effects of a VM without record. Ids are never given twice, so nobody comes to have this one meanwhile."""
        context = self._context
        if any(machine.id == vm_id for machine in self._engine.machines()):
            raise RefusedError(f"VM {vm_id} is known after all", hint="banger audit")
        record = VmRecord(vm_id, vm_id, VmState.DELETING, "", "", VmSpec())
        paths = context.places.of(vm_id)
        ghost = Machine(record, None, paths, context.store, context.board.hub)
        while (process := await asyncio.to_thread(context.vmms.find, paths)) is not None:
            await context.vmms.end(process)
        await undo_effects(context, ghost)
        context.store.delete_vm(vm_id)
        return f"everything of VM {vm_id} removed"

    # Every minute

    async def watch_once(self) -> list[Finding]:
        """Mend VMs that are not what their records say, and tell of everything else that is new; what was found."""
        async with self._fixing:
            found = await self.look(deep=False)
            for finding in found:
                if finding.remedy is Remedy.MEND and finding.key not in self._told:  # once
                    await self._fix_in_time(finding)
        news = [finding for finding in found if finding.key not in self._told]
        self._told = {finding.key for finding in found}
        for finding in news:
            log.warning("audit: %s", finding.what)
            self._context.board.hub.tell(Residue(finding))
        return found

    async def _fix_in_time(self, finding: Finding) -> None:
        machine = next((m for m in self._engine.machines() if m.id == finding.vm_id), None)
        if machine is None or self._engine.busy(machine):
            return  # somebody works on it now
        await self._fix(finding)


async def keep_watch(audit: Audit, every_s: float) -> None:
    """For ever; 0 is never."""
    while every_s > 0:
        await asyncio.sleep(every_s)
        try:
            await audit.watch_once()
        except Exception:  # of one look: the next may do better
            log.exception("comparing record and host failed")


def _known(machine: Machine) -> KnownVm:
    run, vmm = machine.record.run, machine.vmm
    networked = vmm is not None and run is not None and on_own_network(run.network)
    return KnownVm(
        machine.id,
        machine.name,
        machine.state,
        machine.record.image_id,
        vmm.identity if vmm is not None else None,
        networked and machine.lease is not None,
        frozenset(forward.key for forward in machine.relayed),
    )


def _told(error: Exception, finding: Finding) -> Exception:
    """An error of the kernel in banger's words."""
    if isinstance(error, BangerError):
        return error
    return BangerError(
        f"{finding.name} could not be mended", detail=str(error), hint="banger daemon logs"
    )
