"""One look at the host: every port says what it has there. Nothing is changed, and no guest or VMM is spoken to."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterable
from pathlib import Path

from banger.engine.cleaning import is_old, only_ours
from banger.engine.context import Context
from banger.engine.machine import Machine
from banger.host import fs
from banger.model.errors import BangerError
from banger.model.ids import is_id
from banger.model.machine import VmPaths
from banger.model.residue import DirectoryIs, OnHost
from banger.model.state import VmState

_PASSING_S = 60.0
"""For so long a temporary file may be somebody's who is at work."""


async def survey(context: Context, machines: Iterable[Machine], *, deep: bool) -> OnHost:
    """What is there. ``deep``: images are looked at too, which reads what boots a VM and keeps a build from beginning for that moment."""
    machines = list(machines)
    places, store = context.places, context.store
    vms_dir, sockets_dir = places.state_dir / "vms", places.runtime_dir / "vms"
    vmms = await asyncio.to_thread(context.vmms.all, vms_dir, sockets_dir)
    ledger: dict[str, frozenset[str]] = {}
    for row in store.ledger():
        ledger[row.vm_id] = ledger.get(row.vm_id, frozenset()) | {row.effect}
    missing = {machine.id: context.storage.missing(machine.paths) for machine in machines}
    temporaries = [places.state_dir, places.state_dir / "ssh", places.runtime_dir]
    temporaries += [machine.paths.state for machine in machines]
    return OnHost(
        vmms=vmms,
        alive=frozenset(m.id for m in machines if _process_of(m) in vmms.get(m.id, ())),
        devices=await context.storage.devices(vms_dir),
        directories=await asyncio.to_thread(_directories, vms_dir),
        sockets=frozenset(await asyncio.to_thread(_ids_in, sockets_dir)),
        network=await context.network.survey(store.leases),
        ports=context.relays.open(),
        host_keys=await asyncio.to_thread(context.identity.known_hosts),
        left=await asyncio.to_thread(context.vmms.left, [machine.id for machine in machines]),
        ledger=ledger,
        leases=frozenset(lease.vm_id for lease in store.leases()),
        disks={vm_id: str(path) for vm_id, path in missing.items() if path is not None},
        images=await _images(context, machines, deep=deep),
        temporaries=tuple(await asyncio.to_thread(_temporaries, temporaries)),
        builds=await _builds(context) if deep else (),
    )


async def _builds(context: Context) -> tuple[Path, ...]:
    return tuple(path for path, _ in await asyncio.to_thread(context.images.leftovers))


def _process_of(machine: Machine) -> object:
    return machine.vmm.identity if machine.vmm is not None else None


async def _images(context: Context, machines: Iterable[Machine], *, deep: bool) -> dict[str, str]:
    """What is wrong with the images of VMs, by id."""
    wrong = {}
    for image_id in {m.record.image_id for m in machines if m.state is not VmState.CREATING}:
        try:
            boot = context.images.boot_stack(image_id)
            if deep:
                await context.storage.check_image(boot)
        except (BangerError, OSError) as error:
            wrong[image_id] = getattr(error, "what", str(error))
    return wrong


def _ids_in(directory: Path) -> list[str]:
    """Names of VMs' directories in ``directory``: ours by owner and form of the name."""
    if not directory.is_dir():
        return []
    return [
        path.name
        for path in directory.iterdir()
        if is_id(path.name) and path.is_dir() and path.lstat().st_uid == os.geteuid()
    ]


def _directories(vms_dir: Path) -> dict[str, DirectoryIs]:
    found = {}
    for name in _ids_in(vms_dir):
        try:
            found[name] = _what(vms_dir / name)
        except OSError:  # it went meanwhile
            continue
    return found


def _what(path: Path) -> DirectoryIs:
    if (path / "vm.json").exists():
        return DirectoryIs.LOST
    if path.is_symlink() or not only_ours(path):
        return DirectoryIs.MIXED
    kept = VmPaths(path, path).work.exists() and not is_old(path)
    return DirectoryIs.KEPT if kept else DirectoryIs.REST


def _temporaries(directories: Iterable[Path]) -> list[Path]:
    """Files that are there for a moment only, and are there much longer."""
    now_s = time.time()  # noqa: TID251  compared with the file system's times
    found = []
    for directory in directories:
        for path in directory.glob(f"{fs.TEMPORARY}*"):
            try:
                if now_s - path.lstat().st_mtime > _PASSING_S:
                    found.append(path)
            except OSError:  # its maker has come to an end
                continue
    return sorted(found)
