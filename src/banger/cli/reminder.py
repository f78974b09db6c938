"""After a session in a VM: a line on stderr that says that the VM goes on, and how to stop it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from banger.api import routes
from banger.host.config import Config
from banger.model.clock import Deadline
from banger.model.errors import BangerError, DaemonUnreachableError
from banger.model.state import VmState
from banger.model.units import format_duration

if TYPE_CHECKING:
    from banger.api.schema import Vm
    from banger.client.transport import Transport

ASK_S = 2.0
"""In all; a prompt that comes back later than this would be felt. A host that is not overloaded takes milliseconds."""
CONNECTION_LOST = 255
"""ssh's own failure, not a command's: what a guest that powers itself off leaves behind."""


def wanted(config: Config, command: Sequence[str]) -> bool:
    """Whether a session gets a reminder: one that a person has, who has not switched it off."""
    return config.ssh_reminder and not command and sys.stderr.isatty()


def remind(config: Config, vm: Vm, status: int) -> None:
    """Say that ``vm`` still runs, how to stop it and, if its guest says so in time, since when.

    ``status`` is the session's. Nothing is said of a VM that is gone, was stopped or is on its way down, and nothing where no
    daemon answers within `ASK_S`: none is started, and no error takes the place of the session's status.
    """
    from banger.client.autostart import connect_if_running  # noqa: PLC0415  as all of banger.client in the CLI

    if status == CONNECTION_LOST:
        return
    deadline = Deadline.after(ASK_S)
    try:
        transport = connect_if_running(config)
        if transport is None:
            return
        transport.timeout_s = ASK_S
        if transport.fetch(routes.VM_SHOW, {"ref": vm.id})["state"] != VmState.RUNNING:
            return
        up = _uptime(transport, vm, deadline)
    except (BangerError, OSError):
        return
    click.echo(f"VM {vm.name} is still running{up}; stop it: banger vm stop {vm.name}", err=True)


def _uptime(transport: Transport, vm: Vm, deadline: Deadline) -> str:
    """`` (up 12 min 5 s)``; nothing of a guest that does not answer by ``deadline``."""
    transport.timeout_s = max(0.1, deadline.remaining_s)
    try:
        health = transport.fetch(routes.VM_HEALTH, {"ref": vm.id})
    except DaemonUnreachableError:  # too slow
        return ""
    return f" (up {format_duration(health['uptime_s'] * 1000)})" if health["reachable"] else ""
