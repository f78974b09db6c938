"""The operations on one VM, as its worker runs them. Each leaves the VM in a truthful state however it ends."""

from __future__ import annotations

import asyncio
import functools
import logging
from contextlib import AsyncExitStack
from dataclasses import replace

from banger.engine import forwards
from banger.engine.adjust import Changes, adjusted
from banger.engine.boot import TimerLostError, exit_error
from banger.engine.context import Context
from banger.engine.effects import RUN_EFFECTS, undo_effect, undo_effects
from banger.engine.machine import Machine
from banger.engine.operations import OperationRun, StageHandle
from banger.engine.plans import MAKE, RENEW, bring_up
from banger.engine.ports import RunningVmm
from banger.engine.stages import close_tap, rewrite_identity, save_copy
from banger.engine.steps import Job, perform
from banger.host.undo import UndoStack
from banger.model import clock
from banger.model.errors import BangerError, GuestNotReadyError, RefusedError, VmmDiedError
from banger.model.record import ErrorRecord
from banger.model.state import VmState, not_running
from banger.model.units import format_duration

log = logging.getLogger(__name__)
STATUS_S = 1.0
BOOTS = 3


async def create(
    context: Context, machine: Machine, run: OperationRun, job: Job, *, start: bool
) -> None:
    """Make the VM, and start it if asked. Fails as a whole, except that a VM whose guest did not come up stays, stopped."""
    async with UndoStack() as made:
        made.push("forget the VM", machine.forget)
        await perform(context, machine, run, MAKE, made, job)
        try:
            if start:
                await _bring_up(context, machine, run, job)
            else:
                ports = forwards.settle(context, machine.record.spec, ())
                machine.save(forwards=ports)
                machine.enter(VmState.STOPPED)
        except (GuestNotReadyError, VmmDiedError) as error:
            made.release()
            _rest(machine, error)
            raise
        made.release()


async def start(context: Context, machine: Machine, run: OperationRun, job: Job) -> None:
    """Start a VM at rest."""
    machine.enter(VmState.STARTING)
    try:
        async with UndoStack() as nothing_kept:
            await perform(context, machine, run, RENEW, nothing_kept, job)
        await _bring_up(context, machine, run, job)
    except asyncio.CancelledError:
        machine.enter(VmState.STOPPED)
        raise
    except BaseException as error:
        _rest(machine, error)
        raise


def _rest(machine: Machine, error: BaseException) -> None:
    crashed = isinstance(error, VmmDiedError)
    machine.enter(VmState.FAILED if crashed else VmState.STOPPED, error=ErrorRecord.of(error))


async def _bring_up(context: Context, machine: Machine, run: OperationRun, job: Job) -> None:
    """Start and wait as asked. A boot that lost its timer is undone and done again, which the stages show."""
    for left in reversed(range(BOOTS)):
        try:
            await _bring_up_once(context, machine, run, job)
        except TimerLostError as error:
            if not left:
                raise
            log.warning("VM %s is started again: %s", machine.id, error)
        else:
            return


async def _bring_up_once(context: Context, machine: Machine, run: OperationRun, job: Job) -> None:
    async with AsyncExitStack() as slot, UndoStack() as running:

        async def admission(stage: StageHandle) -> str:
            began_ms, full = clock.monotonic_ms(), context.boot_slots.locked()
            if full:
                stage.say("queued: as many VMs boot as may at once")
            await slot.enter_async_context(context.boot_slots)
            return f"queued {format_duration(clock.monotonic_ms() - began_ms)}" if full else ""

        running.push("close the TAP", functools.partial(close_tap, machine))
        steps = bring_up(job.wait)
        await perform(context, machine, run, steps, running, job, admission=admission)
        running.release()


async def stop(
    context: Context, machine: Machine, run: OperationRun, job: Job, *, force: bool
) -> None:
    """Shut the guest down within ``job.ready_s``, or with ``force`` end the VMM as a power cut would."""
    was_paused = machine.state is VmState.PAUSED
    machine.enter(VmState.STOPPING)
    try:
        if not force:
            async with run.stage("shutdown") as stage:
                stage.detail = await _shut_down(context, machine, job, resume=was_paused)
        async with run.stage("vmm"):
            await undo_effects(context, machine, RUN_EFFECTS)
    except BaseException as error:
        await _not_stopped(context, machine, error)
        raise
    machine.enter(VmState.STOPPED)


async def _not_stopped(context: Context, machine: Machine, error: BaseException) -> None:
    """After a stop that broke off: a VM whose VMM is still there runs; of another nothing is left, as far as that can be done."""
    if machine.vmm is not None and machine.exited is not None and not machine.exited.done():
        paused = await vmm_status(machine.vmm) == "paused"
        machine.enter(VmState.PAUSED if paused else VmState.RUNNING, error=ErrorRecord.of(error))
        return
    try:
        await undo_effects(context, machine, RUN_EFFECTS)
    except Exception as again:  # noqa: BLE001  the first error is the one that is told
        log.warning("VM %s: cleaning up after it was not stopped failed: %s", machine.id, again)
    machine.enter(VmState.FAILED, error=ErrorRecord.of(error))


async def vmm_status(vmm: RunningVmm) -> str | None:
    """What a VMM says of itself (``running``, ``paused``), None if it does not answer."""
    try:
        async with asyncio.timeout(STATUS_S):
            return await vmm.status()
    except (BangerError, OSError, TimeoutError) as error:
        log.info("VMM of pid %d does not say how it is: %s", vmm.identity.pid, error)
        return None


async def _shut_down(context: Context, machine: Machine, job: Job, *, resume: bool) -> str:
    """Ask the guest to power off, first the agent, then by the power button; "" if it did, else why it was ended."""
    if machine.vmm is None or machine.exited is None:
        return "was not running"
    if resume:
        await machine.vmm.resume()
    asked = False
    if machine.guest is not None:
        try:
            async with asyncio.timeout(context.timeouts.agent_call_s):
                await machine.guest.shutdown()
            asked = True
        except (BangerError, OSError, TimeoutError) as error:
            log.info("VM %s: the agent did not take the shutdown: %s", machine.id, error)
    if not asked:
        try:
            await machine.vmm.power_down()
        except (BangerError, OSError, TimeoutError) as error:
            return f"ended: neither agent nor power button answered ({error})"
    done, _ = await asyncio.wait({machine.exited}, timeout=job.ready_s)
    return "" if done else "ended: the guest did not power off in time"


async def restart(context: Context, machine: Machine, run: OperationRun, job: Job) -> None:
    """Stop if it runs, then start."""
    if machine.state in {VmState.RUNNING, VmState.PAUSED}:
        await stop(context, machine, run, replace_budget(job, context), force=False)
    await start(context, machine, run, job)


def replace_budget(job: Job, context: Context) -> Job:
    """A job whose time is that of a shutdown, not that of the boot that follows."""
    return Job(min(job.ready_s, context.timeouts.shutdown_s), job.wait)


async def delete(context: Context, machine: Machine, run: OperationRun) -> None:
    """Remove the VM and all its effects; a VM that runs is ended first, without asking its guest."""
    machine.enter(VmState.DELETING)
    for stage, effects in (
        ("vmm", ("vmm", "device")),
        ("network", ("network", "runtime")),
        ("disks", ("identity", "disks", "state")),
    ):
        async with run.stage(stage):
            for effect in effects:
                await undo_effect(context, machine, effect)
    async with run.stage("forget"):
        machine.forget()


async def change(context: Context, machine: Machine, run: OperationRun, changes: Changes) -> None:
    """Change a VM at rest; the work disk grows first, the record follows."""
    record = machine.record
    async with run.stage("validate"):
        spec, earlier = adjusted(record, changes)
        wanted = replace(
            spec,
            vcpus=changes.vcpus or spec.vcpus,
            memory_mib=changes.memory_mib or spec.memory_mib,
            work_bytes=changes.work_bytes or spec.work_bytes,
            network=changes.network or spec.network,
        )
        final = forwards.settle(context, wanted, earlier)
        if wanted.work_bytes < spec.work_bytes:
            raise RefusedError(
                f"the work disk of VM {machine.name} cannot shrink",
                detail=f"it has {spec.work_bytes} bytes, asked were {wanted.work_bytes}",
                hint="make a new VM with a smaller --work-size and copy what you need",
            )
    if wanted.work_bytes > spec.work_bytes:
        async with run.stage("disks"):
            await context.storage.grow_work(machine.paths, wanted.work_bytes)
    async with run.stage("record"):
        machine.save(spec=wanted, forwards=final, name=changes.name or record.name)
        save_copy(machine)
    if machine.name != record.name:
        async with run.stage("identity"):
            await rewrite_identity(context, machine)


async def pause(machine: Machine, run: OperationRun) -> None:
    """Stop the guest's vCPUs; memory stays."""
    async with run.stage("vmm"):
        await _vmm(machine).pause()
        machine.enter(VmState.PAUSED)


async def resume(context: Context, machine: Machine, run: OperationRun) -> None:
    """Let the guest's vCPUs run again, and set its clock, which stood still meanwhile."""
    async with run.stage("vmm"):
        await _vmm(machine).resume()
        machine.enter(VmState.RUNNING)
    async with run.stage("clock") as stage:
        stage.detail = await _set_clock(context, machine)


async def _set_clock(context: Context, machine: Machine) -> str:
    """Why the guest's clock could not be set; "" if it was. A guest whose agent is silent runs on all the same."""
    if machine.guest is None:
        return "not set: the guest has no agent"
    try:
        await machine.guest.set_clock(clock.epoch_ms(), context.timeouts.agent_call_s)
    except (BangerError, OSError, TimeoutError) as error:
        log.info("VM %s: its clock was not set: %s", machine.id, error)
        return f"not set: {error}"
    return ""


def _vmm(machine: Machine) -> RunningVmm:
    if machine.vmm is None:
        raise not_running(machine.name, machine.state)
    return machine.vmm


async def after_exit(context: Context, machine: Machine) -> bool:
    """Clean up after a VMM that ended by itself; True if the guest asked for a reboot and wants to be started again."""
    if machine.exited is None or not machine.exited.done():
        return False
    outcome = machine.exited.result()
    error = exit_error(context, machine, outcome)
    await undo_effects(context, machine, RUN_EFFECTS)
    if outcome.reason in {"guest-shutdown", "guest-reset"}:
        machine.enter(VmState.STOPPED)
    else:
        log.warning("VM %s: %s", machine.id, error)
        machine.enter(VmState.FAILED, error=ErrorRecord.of(error))
    return outcome.reason == "guest-reset"
