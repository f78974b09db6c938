"""The steps of create and start, in the order of the contract. Pure: the lists are the plan, and `plan` says it of one VM."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from banger.engine.boot import declare_ready, wait_agent, wait_booted, wait_services
from banger.engine.stages import (
    attach_network,
    make_disks,
    reserve,
    start_vmm,
    validate_existing,
    validate_new,
    write_identity,
)
from banger.engine.steps import Step
from banger.model.record import VmRecord
from banger.model.spec import VmSpec, suffix
from banger.model.state import WaitFor
from banger.model.units import MIB, format_size

MAKE: Final = (
    Step("validate", "check image {image} and that VMM {vmm} can run here", validate_new),
    Step("reserve", "make the directory of VM {name}", reserve, ("state",)),
    Step("disks", "make root disk ({disk}) and work disk ({work})", make_disks, ("disks",)),
    Step("identity", "write the identity drive", write_identity, ("identity",)),
)
RENEW: Final = (
    Step(
        "validate", "check image {image}, disks, and that VMM {vmm} can run here", validate_existing
    ),
    Step("identity", "renew the identity drive", write_identity),
)
BRING_UP: Final = (
    Step(
        "network",
        "attach to network {network} ({nat}), open forwards: {forwards}",
        attach_network,
        ("runtime", "network"),
    ),
    Step("vmm", "start VMM {vmm} with {vcpus} vCPUs and {memory}", start_vmm, ("device", "vmm")),
    Step("boot", "wait until the guest's init runs", wait_booted),
    Step("agent", "wait for the guest's agent", wait_agent),
    Step("services", "wait for the image's services", wait_services),
    Step("ready", "declare that the VM runs", declare_ready),
)
CREATE: Final = MAKE + BRING_UP
START: Final = RENEW + BRING_UP
_NOT_AWAITED: Final = {
    WaitFor.BOOTED: {"agent", "services"},
    WaitFor.AGENT: {"services"},
    WaitFor.SERVICES: set[str](),
}


def bring_up(wait: WaitFor) -> tuple[Step, ...]:
    """The steps that start a VM and wait for its guest as far as asked."""
    return tuple(step for step in BRING_UP if step.name not in _NOT_AWAITED[wait])


@dataclass(frozen=True, slots=True)
class Planned:
    """A step that would be done: its stage, what it does, and the names of the effects that it leaves."""

    stage: str
    what: str
    effects: tuple[str, ...]


def _reaches(spec: VmSpec) -> str:
    outside = "and to the outside" if spec.nat else "not to the outside"
    return f"{outside}, to VMs of {', '.join(spec.groups)}" if spec.groups else outside


def plan(steps: Sequence[Step], record: VmRecord, vmm: str) -> list[Planned]:
    """What ``steps`` would do for the VM of ``record`` with the VMM called ``vmm``."""
    spec = record.spec
    forwards = [
        f"{f.host_port or 'any'} to {f.guest_port}{suffix(f.protocol)}" for f in spec.forwards
    ]
    words = {
        "name": record.name,
        "image": spec.image,
        "vmm": vmm,
        "disk": format_size(spec.disk_bytes),
        "work": format_size(spec.work_bytes),
        "network": spec.network,
        "nat": _reaches(spec),
        "forwards": ", ".join(forwards) or "any to 22",
        "vcpus": spec.vcpus,
        "memory": format_size(spec.memory_mib * MIB),
    }
    return [Planned(step.name, step.describe.format(**words), step.effects) for step in steps]
