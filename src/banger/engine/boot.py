"""The guest's part of a start: booted, agent, services, ready; and what to say when it does not get there."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine

from banger.engine.context import Context
from banger.engine.machine import Machine
from banger.engine.steps import Job
from banger.host.bound import beyond_operation
from banger.model import clock
from banger.model.errors import BangerError, GuestNotReadyError, VmmDiedError
from banger.model.machine import VmmExit
from banger.model.state import VmState

BOOT_MARK = b"banger: booted"
BOOT_POLL_S = 0.025
_SENTENCES = {
    "guest-shutdown": "its guest shut down",
    "guest-reset": "its guest rebooted",
    "guest-panic": "its guest's kernel panicked",
    "crash": "its VMM crashed",
    "quit": "its VMM was told to quit",
    "host-signal": "its VMM was ended by a signal",
}


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
    context: Context, machine: Machine, job: Job, what: str, work: Coroutine[object, object, None]
) -> None:
    try:
        async with asyncio.timeout(job.deadline.remaining_s):
            await _or_exit(context, machine, work)
    except (TimeoutError, GuestNotReadyError) as error:
        below = error.detail if isinstance(error, BangerError) else ""
        tail = context.console_tail(machine.paths)
        raise GuestNotReadyError(
            f"VM {machine.name} was not ready within {job.ready_s:g} s: {what}",
            detail="\n".join(filter(None, (below, tail and f"last lines of the console:\n{tail}"))),
            hint=f"banger vm logs {machine.name}, or start it with a longer --timeout",
        ) from error


async def wait_booted(context: Context, machine: Machine, job: Job) -> str:
    """The guest's initramfs has handed over to init: it says so on the console."""

    async def marked() -> None:
        while BOOT_MARK not in _console(machine):  # noqa: ASYNC110  a file that another process appends to
            await asyncio.sleep(BOOT_POLL_S)

    await _in_time(context, machine, job, "its kernel did not reach init", marked())
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
    await _in_time(context, machine, job, "its agent did not answer", connected)
    return ""


async def wait_services(context: Context, machine: Machine, job: Job) -> str:
    """Every service that the image declares answers."""
    boot = context.images.boot_stack(machine.record.image_id)
    wanted = {service.name for service in boot.manifest.services}
    if not wanted:
        return ""

    async def answered() -> None:
        while True:
            await refresh_services(machine, job.deadline.remaining_s)
            if all(machine.services.get(name) for name in wanted):
                return

    missing = f"a service did not answer ({', '.join(sorted(wanted))})"
    await _in_time(context, machine, job, missing, answered())
    return ", ".join(sorted(wanted))


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
    """From now on the VM counts as running and ready."""
    del context, job
    machine.ready = True
    machine.enter(VmState.RUNNING)
    return ""
