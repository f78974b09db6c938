"""Which VMs have names on the host and for which guests, and serving those of the host where the configuration says so."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING

from banger.daemon.service import Service
from banger.engine.engine import Engine
from banger.network.guest_names import PER_S

if TYPE_CHECKING:
    from banger.network.names import NameServer

log = logging.getLogger(__name__)


def addresses(engine: Engine, name: str) -> Sequence[str] | None:
    """The addresses at which the host reaches the VM with this name or id; None if there is none.

    Only those of the routed network. A VM that is reached by forwards alone has no address: 127.0.0.1 in its place would lead every other
    port to the host's own services under the VM's name.
    """
    for machine in engine.machines():
        if name in (machine.name, machine.id):
            run = machine.record.run
            routed = run is not None and run.network == "bridge"
            return [run.ip] if run and run.ip and routed else []
    return None


def peers(engine: Engine, mode: str, asker: str, name: str) -> Sequence[str] | None:
    """The address of the VM with this name or id, for the guest with the address ``asker`` in the network of ``mode``: itself, and who shares
    a group with it there; None for all others, whether there are such or not.
    """
    here = {
        machine.record.run.ip: machine
        for machine in engine.machines()
        if machine.record.run is not None and machine.record.run.network == mode
    }
    own = here.get(asker)
    if own is None:
        return None
    for address, machine in here.items():
        shared = set(own.record.spec.groups) & set(machine.record.spec.groups)
        if address and name in (machine.name, machine.id) and (machine is own or shared):
            return [address]
    return None


def flooded(engine: Engine, mode: str, asker: str) -> None:
    """The guest with the address ``asker`` in the network of ``mode`` asks for names without end: said with its VM."""
    for machine in engine.machines():
        run = machine.record.run
        if run is not None and run.network == mode and run.ip == asker:
            machine.note("names", f"its guest asked for names over {PER_S:g} times a second: what was more was dropped")  # fmt: skip


async def serve_names(service: Service, port: int) -> NameServer | None:
    """Begin to answer on 127.0.0.1:``port``; None with port 0, or where the port cannot be had, of which users are warned."""
    if port == 0:
        return None
    from banger.network.names import NameServer  # noqa: PLC0415  dnspython is for daemons that serve names

    server = NameServer(lambda name: addresses(service.engine, name))
    try:
        await server.start(port)
    except OSError as error:
        service.warnings.append(
            f"names of VMs are not served: port {port} of 127.0.0.1 cannot be had ({error.strerror}); choose another dns_port"
        )
        log.warning("%s", service.warnings[-1])
        return None
    log.info("names of VMs are served on 127.0.0.1:%d", port)
    return server
