"""``vm opencode``: the way to the opencode server of a VM."""

from __future__ import annotations

import shutil
import sys
import time
from typing import TYPE_CHECKING

import click

from banger.api import schema
from banger.cli import params
from banger.cli.commands.vm_ssh import check_runs
from banger.cli.output import data
from banger.cli.session import Session, pass_session
from banger.host import exec as host_exec
from banger.model.clock import Deadline
from banger.model.errors import GuestNotReadyError, NotFoundError

if TYPE_CHECKING:
    from banger.client.sdk import Client

SERVICE, POLL_S = "opencode", 0.5


@click.command()
@click.argument("name", type=params.VM)
@click.option("--url", "only_url", is_flag=True, help="Print the URL, also where opencode is here.")
@click.option(
    "--timeout", type=params.TIMEOUT, default=180.0, help="Seconds until it must answer.  [180]"
)
@data.format_option
@pass_session
def opencode(session: Session, *, name: str, only_url: bool, timeout: float, output: str) -> None:
    """Attach this host's opencode to the one in a VM, or print the URL where it answers.

    A port of 127.0.0.1 is forwarded to it, and stays (banger vm forward NAME lists it). Without opencode on this
    host, or with --url, open the URL in a browser or give it to: opencode attach URL
    """
    client = session.client
    vm = client.vm(name)
    check_runs(vm)
    port = next((one.port for one in vm.status.services if one.name == SERVICE), None)
    if port is None:
        raise NotFoundError(
            f"VM {vm.name} has no opencode: its image {vm.spec.image} declares no such service",
            hint="banger run debian",
        )
    await_service(client, vm, timeout)
    url = f"http://127.0.0.1:{_forwarded(client, vm, port)}"
    program = None if only_url else shutil.which("opencode")
    if program is None or not (sys.stdin.isatty() and sys.stdout.isatty()):
        data.show_text(url, output, key="url")
        return
    session.close()
    host_exec.replace([program, "attach", url])


def await_service(client: Client, vm: schema.Vm, timeout_s: float) -> None:
    """Return when opencode answers in the guest; GuestNotReadyError after ``timeout_s``."""
    deadline, told = Deadline.after(timeout_s), False
    while True:
        health = client.health(vm.id)
        if any(one.name == SERVICE and one.ready for one in health.services):
            return
        if deadline.passed:
            raise GuestNotReadyError(
                f"opencode in VM {vm.name} did not answer within {timeout_s:g} s",
                detail=health.detail,
                hint=f"banger exec {vm.name} -- journalctl -u opencode",
            )
        if not told:
            click.echo(f"waiting for opencode in VM {vm.name}", err=True)
            told = True
        time.sleep(min(POLL_S, deadline.remaining_s))


def _forwarded(client: Client, vm: schema.Vm, port: int) -> int:
    """The port of this host that leads there; opened if there is none."""
    found = client.forwards(vm.id)
    if not _leading(found, port):
        found = client.add_forwards(vm.id, [schema.Forward(0, port)])
    return _leading(found, port)[0]


def _leading(forwards: list[schema.VmForward], port: int) -> list[int]:
    return [f.host_port for f in forwards if (f.protocol, f.guest_port) == ("tcp", port) and f.open]
