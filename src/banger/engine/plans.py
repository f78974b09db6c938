"""The steps of create and start, in the order of the contract. Pure: the lists are the plan, ``describe`` prints them."""

from __future__ import annotations

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

MAKE: Final = (
    Step("validate", "check the image and what this host can run", validate_new),
    Step("reserve", "make the VM's directory", reserve, ("state",)),
    Step("disks", "make overlay and work disk", make_disks, ("disks",)),
    Step("identity", "write the identity drive", write_identity, ("identity",)),
)
RENEW: Final = (
    Step("validate", "check image and disks", validate_existing),
    Step("identity", "renew the identity drive", write_identity),
)
BRING_UP: Final = (
    Step("network", "attach to the network, open forwards", attach_network, ("runtime", "network")),
    Step("vmm", "start the VMM", start_vmm, ("vmm",)),
    Step("boot", "wait until the guest's init runs", wait_booted),
    Step("agent", "wait for the guest's agent", wait_agent),
    Step("services", "wait for the image's services", wait_services),
    Step("ready", "declare the VM ready", declare_ready),
)
CREATE: Final = MAKE + BRING_UP
START: Final = RENEW + BRING_UP
