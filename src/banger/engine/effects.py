"""The effects of a VM on the host, in the order in which they are made, each with its inverse.

Every inverse is idempotent, so the same functions undo a failed operation, delete a VM and clean up after a daemon that was
killed half-way. Making an effect is in `banger.engine.stages`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Final

from banger.engine.context import Context
from banger.engine.machine import Machine
from banger.host import fs

log = logging.getLogger(__name__)

Inverse = Callable[[Context, Machine], Awaitable[None]]


async def _remove_state(context: Context, machine: Machine) -> None:
    del context
    await asyncio.to_thread(fs.remove_tree, machine.paths.state)


async def _remove_disks(context: Context, machine: Machine) -> None:
    await context.storage.delete(machine.paths)


async def _forget_identity(context: Context, machine: Machine) -> None:
    await context.identity.forget(machine.id, machine.paths)


async def _remove_sockets(context: Context, machine: Machine) -> None:
    del context
    await asyncio.to_thread(fs.remove_tree, machine.paths.runtime)


async def _detach(context: Context, machine: Machine) -> None:
    while machine.relayed:
        forward = machine.relayed.pop()
        await context.relays.remove(forward.host_port, protocol=forward.protocol)
    if machine.lease is not None:
        await context.network.detach(machine.lease)


async def _close_root(context: Context, machine: Machine) -> None:
    await context.storage.close_root(machine.paths)


async def _end_vmm(context: Context, machine: Machine) -> None:
    if machine.guest is not None:
        await machine.guest.close()
        machine.guest = None
    if machine.watcher is not None and machine.watcher is not asyncio.current_task():
        machine.watcher.cancel()
    if machine.checker is not None:
        machine.checker.cancel()
    machine.watcher = machine.checker = None
    vmm, run = machine.vmm, machine.record.run
    if vmm is None and run is not None:  # an earlier daemon's
        vmm = await context.vmms.named(run.vmm).adopt(run.process, machine.paths)
    if vmm is not None:
        await vmm.kill()
        await vmm.close()
        machine.vmm = None
    unrecorded = context.vmms.find(machine.paths)
    if unrecorded is not None:
        await context.vmms.end(unrecorded)
    await context.vmms.release(machine.paths)
    machine.ready, machine.booted_at, machine.exited = False, None, None
    if machine.record.run is not None:
        machine.save(run=None)


EFFECTS: Final[dict[str, Inverse]] = {
    "state": _remove_state,
    "disks": _remove_disks,
    "identity": _forget_identity,
    "runtime": _remove_sockets,
    "network": _detach,
    "device": _close_root,
    "vmm": _end_vmm,
}
RUN_EFFECTS: Final = ("runtime", "network", "device", "vmm")


async def undo_effect(context: Context, machine: Machine, effect: str) -> None:
    """Run the inverse of ``effect`` and strike it from the ledger."""
    await EFFECTS[effect](context, machine)
    context.store.strike(machine.id, effect)


async def undo_effects(
    context: Context, machine: Machine, effects: tuple[str, ...] = tuple(EFFECTS)
) -> None:
    """Undo ``effects`` (default: all), newest first; every one is tried, the first error is raised at the end."""
    first: Exception | None = None
    for effect in reversed(effects):
        try:
            async with asyncio.timeout(30):
                await undo_effect(context, machine, effect)
        except Exception as error:  # noqa: BLE001  every inverse runs
            log.warning("VM %s: undoing %s failed: %s", machine.id, effect, error)
            first = first or error
    if first is not None:
        raise first


async def settle_down(machine: Machine) -> None:
    """Let go of a VM that runs on without this daemon."""
    for task in (machine.watcher, machine.checker):
        if task is not None:
            task.cancel()
            await asyncio.wait({task})
    if machine.guest is not None:
        await machine.guest.close()
    if machine.vmm is not None:
        await machine.vmm.close()
