"""The engine: requests in, operations out. Knows the VMs in memory and gives each to its worker."""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Callable, Coroutine

from banger.engine import verbs
from banger.engine.adjust import Changes, adjust
from banger.engine.admission import Accept, AlreadySo, Refuse, Verb, admit
from banger.engine.context import Context
from banger.engine.effects import settle_down
from banger.engine.events import VmChange
from banger.engine.machine import Machine
from banger.engine.mend import mend
from banger.engine.operations import OperationRun
from banger.engine.plans import MAKE, RENEW, Planned, bring_up, plan
from banger.engine.steps import Job
from banger.engine.worker import Worker
from banger.model import clock
from banger.model.errors import BangerError, InvalidInputError, NotFoundError, RefusedError
from banger.model.ids import check_name, new_id, new_name
from banger.model.record import OperationRecord, VmRecord
from banger.model.spec import VmSpec
from banger.model.state import OperationState, VmState, WaitFor

log = logging.getLogger(__name__)

WorkOf = Callable[[OperationRun], Coroutine[object, object, None]]
_CANCELLABLE = {Verb.CREATE, Verb.START, Verb.RESTART, Verb.PROMOTE}


class Engine:
    """All VMs of one daemon."""

    def __init__(self, context: Context) -> None:
        self.context = context
        self._workers: dict[str, Worker] = {}

    # Looking

    def machines(self) -> list[Machine]:
        """All VMs, oldest first."""
        return sorted(
            (w.machine for w in self._workers.values()), key=lambda m: (m.record.created_at, m.id)
        )

    def resolve(self, ref: str) -> Machine:
        """The VM of this name, id or unique id prefix; NotFoundError, InvalidInputError if several ids begin so."""
        machines = [worker.machine for worker in self._workers.values()]
        for machine in machines:
            if ref in (machine.name, machine.id):
                return machine
        found = [machine for machine in machines if ref and machine.id.startswith(ref)]
        if len(found) == 1:
            return found[0]
        shown = ref if len(ref) <= 64 else ref[:61] + "..."
        if found:
            names = ", ".join(machine.name for machine in found)
            raise InvalidInputError(
                f"VM id prefix {shown!r} is not unique: {names}", hint="give more digits"
            )
        raise NotFoundError(f"no VM {shown!r}", hint="banger vm list")

    def using_image(self, image_id: str) -> list[Machine]:
        """The VMs whose overlay lies over this image."""
        return [machine for machine in self.machines() if machine.record.image_id == image_id]

    def busy(self, machine: Machine) -> bool:
        """Whether an operation works on this VM or waits to, or it ended a moment ago and is being cleaned up after."""
        worker = self._workers.get(machine.id)
        return worker is None or worker.busy

    # Adopting what is there (used by reconcile)

    def take(self, machine: Machine) -> None:
        """Give ``machine`` a worker."""
        self._workers[machine.id] = Worker(
            self.context, machine, gone=self._forget, reboot=self._start_again
        )

    def _forget(self, machine: Machine) -> None:
        self._workers.pop(machine.id, None)

    async def _start_again(self, machine: Machine) -> None:
        log.info("VM %s: its guest rebooted, starting it again", machine.id)
        try:
            self.start(machine, None)
        except RefusedError as error:  # the daemon ends, or its user was faster
            log.warning("VM %s: %s", machine.id, error)

    # Asking

    def create(
        self,
        name: str | None,
        image_ref: str,
        spec: VmSpec,
        *,
        start: bool,
        ready_s: float | None,
        wait: WaitFor = WaitFor.SERVICES,
    ) -> OperationRun:
        """Begin vm.create. Name and lease are taken at once, so that two requests never share them."""
        record = self._new_record(name, image_ref, spec)
        store = self.context.store
        lease = self.context.network.plan_lease(record.id, store.leases())
        store.insert_vm(record, lease)
        machine = Machine(
            record, lease, self.context.places.of(record.id), store, self.context.board.hub
        )
        try:
            run = self._begin(machine, Verb.CREATE)
        except BangerError as error:
            self._give_up(machine, error)
            raise
        self.take(machine)
        self.context.board.hub.tell(VmChange(machine.id, machine.name, machine.state))
        job = self._job(ready_s, wait)
        work = functools.partial(verbs.create, self.context, machine, run, job, start=start)
        self._workers[machine.id].submit(Verb.CREATE, run, work)
        return run

    def _new_record(self, name: str | None, image_ref: str, spec: VmSpec) -> VmRecord:
        image = self.context.images.get(image_ref)
        if spec.disk_bytes < image.disk_bytes:
            raise InvalidInputError(
                f"disk size {spec.disk_bytes} is below that of image {image.name}",
                detail=f"the image's root file system has {image.disk_bytes} bytes",
                hint=f"choose --disk-size {image.disk_bytes >> 30}G or more",
            )
        return VmRecord(
            id=new_id(),
            name=check_name(name) if name is not None else self._free_name(),
            state=VmState.CREATING,
            created_at=clock.now(),
            image_id=image.id,
            spec=spec,
        )

    async def plan_create(
        self,
        name: str | None,
        image_ref: str,
        spec: VmSpec,
        *,
        start: bool,
        wait: WaitFor = WaitFor.SERVICES,
    ) -> list[Planned]:
        """What `create` would do; it refuses what `create` would refuse at once or for want of a VMM, and changes nothing."""
        record = self._new_record(name, image_ref, spec)
        self._refuse_taken(record.name)
        storage = self.context.storage
        vmm = await self.context.vmms.pick(spec.vmm, storage.wanted_format)
        boot = self.context.images.boot_stack(record.image_id)
        await storage.choose(boot, self.context.places.of(record.id), vmm.name, vmm.root_formats)
        return plan(MAKE + bring_up(wait) if start else MAKE, record, vmm.name)

    async def plan_start(self, machine: Machine, wait: WaitFor = WaitFor.SERVICES) -> list[Planned]:
        """What `start` would do; empty where there is nothing to do. Errors as of `start`."""
        worker = self._workers[machine.id]
        match admit(machine.state, worker.queue, Verb.START):
            case Refuse(reason, hint):
                raise _refused(machine, reason, hint)
            case AlreadySo():
                return []
            case Accept():
                root = self.context.storage.root(machine.paths)
                vmm = await self.context.vmms.pick(
                    machine.record.spec.vmm, None if root is None else root.format
                )
                return plan(RENEW + bring_up(wait), machine.record, vmm.name)

    def _refuse_taken(self, name: str, but: Machine | None = None) -> None:
        if any(other.name == name and other is not but for other in self.machines()):
            raise RefusedError(
                f"VM name {name!r} is taken",
                hint=f"choose another name, or: banger vm delete {name}",
            )

    def _give_up(self, machine: Machine, error: BangerError) -> None:
        """Forget a VM of which nothing was made yet; where the store does not even let that happen, keep it to be deleted."""
        try:
            machine.forget()
        except BangerError:
            machine.fail(error)
            self.take(machine)

    def _free_name(self) -> str:
        taken = {machine.name for machine in self.machines()}
        for _ in range(100):
            name = new_name()
            if name not in taken:
                return name
        return f"{new_name()}-{new_id()[:4]}"

    def start(
        self, machine: Machine, ready_s: float | None, wait: WaitFor = WaitFor.SERVICES
    ) -> OperationRecord:
        """Begin vm.start."""
        return self._ask(
            machine,
            Verb.START,
            lambda run: verbs.start(self.context, machine, run, self._job(ready_s, wait)),
        )

    def stop(self, machine: Machine, timeout_s: float | None, *, force: bool) -> OperationRecord:
        """Begin vm.stop; the guest has ``timeout_s`` to shut down (None: the default)."""
        job_s = self.context.timeouts.shutdown_s if timeout_s is None else timeout_s
        return self._ask(
            machine,
            Verb.STOP,
            lambda run: verbs.stop(self.context, machine, run, Job(job_s), force=force),
        )

    def restart(
        self, machine: Machine, ready_s: float | None, wait: WaitFor = WaitFor.SERVICES
    ) -> OperationRecord:
        """Begin vm.restart."""
        return self._ask(
            machine,
            Verb.RESTART,
            lambda run: verbs.restart(self.context, machine, run, self._job(ready_s, wait)),
        )

    def delete(self, machine: Machine) -> OperationRecord:
        """Begin vm.delete."""
        return self._ask(machine, Verb.DELETE, lambda run: verbs.delete(self.context, machine, run))

    def pause(self, machine: Machine) -> OperationRecord:
        """Begin vm.pause."""
        return self._ask(machine, Verb.PAUSE, lambda run: verbs.pause(machine, run))

    def resume(self, machine: Machine) -> OperationRecord:
        """Begin vm.resume."""
        return self._ask(machine, Verb.RESUME, lambda run: verbs.resume(self.context, machine, run))

    def mend(self, machine: Machine) -> OperationRecord:
        """Begin vm.mend: see `banger.engine.mend`. RefusedError while something else works on the VM."""
        return self._ask(machine, Verb.MEND, lambda run: mend(self.context, machine, run))

    def promote(self, machine: Machine, work: WorkOf) -> OperationRecord:
        """Begin vm.promote, which is ``work``: the VM stays at rest for the time of it."""
        return self._ask(machine, Verb.PROMOTE, work)

    async def change(self, machine: Machine, changes: Changes) -> OperationRecord:
        """Do vm.set, or vm.adjust where that is enough, and wait for it: it is short, and its caller wants the changed VM."""
        if changes.name is not None:
            self._refuse_taken(check_name(changes.name), machine)
        verb, do = (Verb.ADJUST, adjust) if changes.small else (Verb.SET, verbs.change)
        record = self._ask(machine, verb, lambda run: do(self.context, machine, run, changes))
        live = self.context.board.live(record.id)
        record = await live.wait() if live else record
        if record.error is not None:
            raise record.error.to_error()
        return record

    def _job(self, ready_s: float | None, wait: WaitFor) -> Job:
        return Job(self.context.timeouts.ready_s if ready_s is None else ready_s, wait)

    def _begin(self, machine: Machine, verb: Verb) -> OperationRun:
        return self.context.board.begin(
            verb, machine.id, machine.name, cancellable=verb in _CANCELLABLE
        )

    def _ask(self, machine: Machine, verb: Verb, work: WorkOf) -> OperationRecord:
        worker = self._workers.get(machine.id)
        if worker is None:
            raise NotFoundError(f"no VM {machine.name!r}", hint="banger vm list")
        decision = admit(machine.state, worker.queue, verb)
        match decision:
            case Refuse(reason, hint):
                raise _refused(machine, reason, hint)
            case AlreadySo(operation_id) if operation_id is not None:
                return self.context.board.get(operation_id)
            case AlreadySo():
                run = self._begin(machine, verb)
                run.finish(OperationState.SUCCEEDED)
                return run.record
            case Accept(cancel_running):
                run = self._begin(machine, verb)
                worker.submit(verb, run, lambda: work(run), cancel_running=cancel_running)
                return run.record

    async def close(self) -> None:
        """End the workers and let go of VMs, which run on."""
        workers = list(self._workers.values())
        await asyncio.gather(*(worker.close() for worker in workers))
        for worker in workers:
            await settle_down(worker.machine)


def _refused(machine: Machine, reason: str, hint: str) -> RefusedError:
    return RefusedError(f"VM {machine.name} {reason}", hint=hint.format(name=machine.name))
