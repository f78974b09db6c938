"""Which driver a new VM gets. Pure: what was configured, what the VMM reads and what the host can decide."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from banger.host.probe import Answer
from banger.model.errors import HostLacksError, RefusedError
from banger.model.machine import DiskFormat, StorageChoice, StorageDriver
from banger.storage.snapshots.port import THROUGH_HELPER

AUTO: Final = "auto"
_LET_BANGER_CHOOSE: Final = "take storage out of the file that this names: banger config path"


@dataclass(frozen=True, slots=True)
class Facts:
    """What this host can: ``reflink`` from the images to the VMs of ``state_dir``, and ``device_mapper``, whose ``found`` says by whom."""

    state_dir: Path
    reflink: Answer
    device_mapper: Answer


def wanted_format(wanted: str) -> DiskFormat | None:
    """The format that a configured driver makes; None if banger chooses."""
    return None if wanted == AUTO else StorageDriver(wanted).disk_format


def choose(wanted: str, vmm: str, formats: Sequence[DiskFormat], facts: Facts) -> StorageChoice:
    """The driver for a VM that ``vmm`` runs, which reads ``formats``, the best first; RefusedError or HostLacksError for a forced one
    that cannot work.
    """
    if wanted == AUTO:
        return _best(vmm, formats, facts)
    driver = StorageDriver(wanted)
    if driver.disk_format not in formats:
        raise RefusedError(
            f"storage driver {driver} does not go with VMM {vmm}",
            detail=f"it makes a {driver.disk_format} disk, and {vmm} reads {', '.join(formats)}",
            hint="create it with --vmm qemu",
        )
    if driver is StorageDriver.REFLINK and not facts.reflink:
        raise _cannot(driver, facts, facts.reflink, _set_up(facts.state_dir))
    if driver is StorageDriver.DM_SNAPSHOT and not facts.device_mapper:
        raise _cannot(driver, facts, facts.device_mapper, facts.device_mapper.hint)
    if driver is StorageDriver.DM_SNAPSHOT:
        return StorageChoice(driver, f"configured{_by(facts.device_mapper)}")
    return StorageChoice(driver, "configured")


def _best(vmm: str, formats: Sequence[DiskFormat], facts: Facts) -> StorageChoice:
    if formats[0] is DiskFormat.QCOW2:
        return StorageChoice(StorageDriver.QCOW2, f"auto: {vmm} reads it, and it is made at once")
    if facts.reflink:
        return StorageChoice(StorageDriver.REFLINK, "auto: the file system shares blocks")
    if facts.device_mapper:
        why = "auto: the file system cannot share blocks, the device mapper can"
        return StorageChoice(StorageDriver.DM_SNAPSHOT, why + _by(facts.device_mapper))
    why = f"auto: the file system cannot share blocks; no dm-snapshot: {facts.device_mapper.why}"
    return StorageChoice(StorageDriver.COPY, why)


def _by(answer: Answer) -> str:
    return f", through {THROUGH_HELPER}" if answer.found == THROUGH_HELPER else ""


def _set_up(state_dir: Path) -> str:
    return f"sudo banger setup storage --state-dir {shlex.quote(str(state_dir))}"


def _cannot(driver: StorageDriver, facts: Facts, answer: Answer, hint: str) -> HostLacksError:
    return HostLacksError(
        f"storage driver {driver} cannot work in {facts.state_dir}",
        detail=answer.why,
        hint=hint or _LET_BANGER_CHOOSE,
    )
