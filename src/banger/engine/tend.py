"""Looks after the stores of root disks while VMs run: one that cannot grow any more pauses its VM before the kernel gives the disk up."""

from __future__ import annotations

import asyncio
import logging

from banger.engine.engine import Engine
from banger.engine.machine import Machine
from banger.model.errors import BangerError
from banger.model.machine import StorageDriver, StoreFill
from banger.model.record import ErrorRecord
from banger.model.state import VmState

log = logging.getLogger(__name__)
EVERY_S = 0.5


async def tend_stores(engine: Engine) -> None:
    """For ever. While no VM has such a store it costs nothing but waking up."""
    while True:
        await asyncio.sleep(EVERY_S)
        try:
            await tend_once(engine)
        except Exception:  # of one look: the next may do better
            log.exception("looking after the stores of root disks failed")


async def tend_once(engine: Engine) -> None:
    """One look at all of them."""
    machines = {
        machine.id: machine
        for machine in engine.machines()
        if machine.vmm is not None and machine.record.storage == StorageDriver.DM_SNAPSHOT
    }
    if not machines:
        return
    for fill in await engine.context.storage.tend(one.paths for one in machines.values()):
        await _act(engine, machines[fill.vm_id], fill)


async def _act(engine: Engine, machine: Machine, fill: StoreFill) -> None:
    if fill.trouble == "":
        if machine.store_trouble:
            log.info("VM %s: the store of its root disk grows again", machine.id)
        machine.store_trouble = ""
        return
    first = fill.trouble != machine.store_trouble
    machine.store_trouble = fill.trouble
    if machine.vmm is None or machine.state is not VmState.RUNNING:
        return
    log.warning("VM %s is paused: %s", machine.id, fill.trouble)
    try:
        await machine.vmm.pause()  # now; the operation writes it down when the worker comes to it
        engine.pause(machine)
    except BangerError as error:
        log.warning("VM %s could not be paused: %s", machine.id, error)
    if first:
        machine.save(last_error=_error(machine, fill))


def _error(machine: Machine, fill: StoreFill) -> ErrorRecord:
    return ErrorRecord(
        "host-lacks",
        f"VM {machine.name} was paused: {fill.trouble}",
        detail=f"its guest has changed {fill.used_bytes} bytes; a snapshot whose store is full would be lost",
        hint=f"free space on this host, then: banger vm resume {machine.name}",
    )
