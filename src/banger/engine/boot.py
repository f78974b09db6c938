"""The guest's part of a start: booted, agent, services, ready; and what to say when it does not get there."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine, Mapping

from banger.engine.context import Context
from banger.engine.machine import Machine
from banger.engine.steps import Job
from banger.host.bound import beyond_operation
from banger.model import clock
from banger.model.errors import BangerError, GuestNotReadyError, VmmDiedError
from banger.model.machine import VmmExit
from banger.model.state import VmState, WaitFor
from banger.model.units import format_duration

log = logging.getLogger(__name__)
BOOT_MARK = b"banger: booted"
TIMER_LOST = b"APIC frequency too slow"
"""Linux measures its timer by the TSC over 100 ms (arch/x86/kernel/apic/apic.c, calibrate_APIC_clock). An emulated CPU that the host held up
for all of these sees no time pass at the timer, gives it up, and waits for ever for its first tick: microvm has no other."""
BOOT_POLL_S = 0.025
SERVICES_POLL_S = 2.0
PAUSE_S = 0.1  # between questions, whatever a guest answers at once
ASK_S, RETRY_S, RETRY_TIMES = 10.0, 5.0, 12
_SENTENCES = {
    "guest-shutdown": "its guest shut down",
    "guest-reset": "its guest rebooted",
    "guest-panic": "its guest's kernel panicked",
    "crash": "its VMM crashed",
    "quit": "its VMM was told to quit",
    "host-signal": "its VMM was ended by a signal",
}


class TimerLostError(GuestNotReadyError):
    """This boot hangs, the next one need not: see `TIMER_LOST`."""


def watch_exit(machine: Machine) -> None:
    """Fill ``machine.exited`` when the VMM of this run ends."""
    vmm = machine.vmm
    if vmm is None:
        raise RuntimeError("nothing to watch")
    exited: asyncio.Future[VmmExit] = asyncio.get_running_loop().create_future()
    machine.exited = exited

    async def watch() -> None:
        outcome = await vmm.wait()
        if not exited.done():
            exited.set_result(outcome)
        machine.wake.set()

    machine.watcher = asyncio.create_task(
        watch(), name=f"watch {machine.id}", context=beyond_operation()
    )


def exit_error(context: Context, machine: Machine, outcome: VmmExit) -> VmmDiedError:
    """What to say of a VMM that ended by itself: how, and the console's last lines."""
    why = _SENTENCES.get(outcome.reason, outcome.reason)
    tail = context.console_tail(machine.paths)
    detail = "\n".join(
        part for part in (outcome.detail, tail and f"last lines of the console:\n{tail}") if part
    )
    return VmmDiedError(
        f"VM {machine.name} ended: {why}", detail=detail, hint=f"banger vm logs {machine.name}"
    )


async def _or_exit(
    context: Context, machine: Machine, work: Coroutine[object, object, None]
) -> None:
    """Await ``work``, unless the VMM ends first."""
    task = asyncio.ensure_future(work)
    exited = machine.exited
    if exited is None:
        raise RuntimeError("no run to watch")
    try:
        both: set[asyncio.Future[object]] = {task, exited}  # type: ignore[arg-type]  # only waited for
        await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
        if exited.done():
            raise exit_error(context, machine, exited.result())
        task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})


async def _in_time(
    context: Context,
    machine: Machine,
    job: Job,
    missing: Callable[[], str],
    work: Coroutine[object, object, None],
) -> None:
    """Await ``work`` within the job's time, or raise GuestNotReadyError, in which ``missing`` says what did not happen."""
    try:
        async with asyncio.timeout(job.deadline.remaining_s):
            await _or_exit(context, machine, work)
    except TimerLostError:
        raise
    except (TimeoutError, GuestNotReadyError) as error:
        below = error.detail if isinstance(error, BangerError) else ""
        tail = context.console_tail(machine.paths)
        raise GuestNotReadyError(
            f"VM {machine.name} was not ready within {job.ready_s:g} s: {missing()}",
            detail="\n".join(filter(None, (below, tail and f"last lines of the console:\n{tail}"))),
            hint=f"banger vm logs {machine.name}, or start it with a longer --timeout",
        ) from error


async def wait_booted(context: Context, machine: Machine, job: Job) -> str:
    """The guest's initramfs has handed over to init: it says so on the console. TimerLostError if its kernel never will."""

    async def marked() -> None:
        while BOOT_MARK not in (said := _console(machine)):
            if TIMER_LOST in said:
                job.say("its kernel found no timer on the busy host")
                raise TimerLostError(
                    f"VM {machine.name} did not boot: its emulated kernel found no timer",
                    detail="the host was too busy to let it measure one",
                    hint=f"banger vm start {machine.name}, when less runs",
                )
            await asyncio.sleep(BOOT_POLL_S)

    await _in_time(context, machine, job, lambda: "its kernel did not reach init", marked())
    machine.booted_at = clock.now()
    return ""


def _console(machine: Machine) -> bytes:
    try:
        with machine.paths.console_log.open("rb") as file:
            return file.read(1 << 20)
    except FileNotFoundError:
        return b""


async def wait_agent(context: Context, machine: Machine, job: Job) -> str:
    """The agent has answered."""
    if machine.guest is None:
        raise RuntimeError("no guest")
    connected = machine.guest.wait_connected(job.deadline.remaining_s)
    await _in_time(context, machine, job, lambda: "its agent did not answer", connected)
    return ""


async def wait_services(context: Context, machine: Machine, job: Job) -> str:
    """Every service that the image declares answers; how long each took, where it took long."""
    wanted = _declared(context, machine)
    if not wanted:
        return ""
    began_ms = clock.monotonic_ms()
    took: dict[str, str] = {}
    silence: list[GuestNotReadyError] = []

    async def answered() -> None:
        while True:
            try:
                await refresh_services(machine, min(job.deadline.remaining_s, SERVICES_POLL_S))
            except (
                GuestNotReadyError
            ) as error:  # a busy host's guest may leave a question unanswered
                silence[:] = [error]
                await asyncio.sleep(PAUSE_S)
                continue
            silence.clear()
            since_ms = clock.monotonic_ms() - began_ms
            slow = f" {format_duration(since_ms)}" if since_ms > SERVICES_POLL_S * 1000 else ""
            took.update(
                {n: slow for n in sorted(wanted) if machine.services.get(n) and n not in took}
            )
            if len(took) == len(wanted):
                return
            await asyncio.sleep(PAUSE_S)
            left = f"waiting for {', '.join(sorted(wanted - set(took)))}"
            job.say(", ".join(filter(None, (_listed(took), left))))

    def missing() -> str:
        if silence:
            return f"its agent does not answer any more: {silence[0]}"
        return f"a service did not answer ({', '.join(sorted(wanted - set(took)))})"

    await _in_time(context, machine, job, missing, answered())
    return _listed(took)


def _declared(context: Context, machine: Machine) -> set[str]:
    """The services of the VM's image; NotFoundError if that is gone."""
    boot = context.images.boot_stack(machine.record.image_id)
    return {service.name for service in boot.manifest.services}


def _listed(took: Mapping[str, str]) -> str:
    return ", ".join(f"{name}{slow}" for name, slow in took.items())


async def refresh_services(machine: Machine, timeout_s: float) -> None:
    """Ask the agent which services answer, waiting up to ``timeout_s`` for all of them."""
    if machine.guest is None:
        raise GuestNotReadyError(
            f"VM {machine.name} has no agent connection", hint=f"banger vm restart {machine.name}"
        )
    health = await machine.guest.wait_services(timeout_s)
    listed = health.get("services")
    machine.services = {
        str(item["name"]): item.get("ready") is True
        for item in (listed if isinstance(listed, list) else [])
        if isinstance(item, dict) and "name" in item
    }


async def declare_ready(context: Context, machine: Machine, job: Job) -> str:
    """From now on the VM counts as running, and as ready if its services were waited for; else that is found out by and by."""
    machine.ready = job.wait is WaitFor.SERVICES
    machine.enter(VmState.RUNNING)
    if machine.ready:
        return ""
    follow_up(context, machine)
    return f"waited for {job.wait}"


def follow_up(context: Context, machine: Machine) -> None:
    """Find out in the background when a VM that runs is ready; ends with its run."""
    machine.checker = asyncio.create_task(
        check_ready(context, machine), name=f"ready? {machine.id}", context=beyond_operation()
    )


async def check_ready(context: Context, machine: Machine) -> None:
    """Return when all services have answered. The guest holds each question until then, for `SERVICES_POLL_S`.

    Few guests are asked at a time, and one that does not answer less and less often: a daemon that adopts twenty emulated guests and asks
    them all would get no answer in time, ask again, and so keep them busy for ever.
    """
    told, pause_s = False, RETRY_S
    while (guest := machine.guest) is not None:
        try:
            wanted = _declared(context, machine)
            async with context.questions:
                await guest.wait_connected(ASK_S)
                await refresh_services(machine, SERVICES_POLL_S)
        except (BangerError, OSError) as error:
            if not told:
                log.info("VM %s runs, but is not ready: %s", machine.id, error)
            told = True
            await asyncio.sleep(pause_s)  # a guest that does not answer has nothing to wait on
            pause_s = min(2 * pause_s, RETRY_TIMES * RETRY_S)
            continue
        pause_s = RETRY_S
        if machine.vmm is not None and all(machine.services.get(name) for name in wanted):
            machine.ready = True
            return
        await asyncio.sleep(PAUSE_S)
