"""``vm forward``: ports of the host that lead into a VM."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from banger.api import schema
from banger.cli import params
from banger.cli.output import data
from banger.cli.output.text import yes_no
from banger.cli.session import Session, pass_session


@click.command()
@click.argument("name", type=params.VM)
@click.argument("forwards", type=params.FORWARD, nargs=-1, metavar="[[HOST:]GUEST[/tcp|/udp]]...")
@click.option(
    "--remove",
    "removed",
    type=params.HOST_PORT,
    multiple=True,
    help="Remove the forward at this port of the host; repeatable.",
)
@data.format_option
@pass_session
def forward(
    session: Session,
    *,
    name: str,
    forwards: tuple[schema.Forward, ...],
    removed: tuple[tuple[schema.ProtocolName, int], ...],
    output: str,
) -> None:
    """List the forwards of a VM, or add and remove some, while it runs or is stopped.

    \b
    banger vm forward web                    list
    banger vm forward web 8080:80 53:53/udp  lead 127.0.0.1:8080 to its port 80, and UDP
    banger vm forward web 80                 any free port of the host; it is listed
    banger vm forward web --remove 8080      end it

    They are the VM's: they come back with it, and with the daemon, and go with it. Forwards are removed first, then added.
    """  # noqa: D301  \b keeps click from filling the lines
    found = None
    for protocol, port in removed:
        found = session.client.remove_forward(name, port, protocol)
    if forwards:
        found = session.client.add_forwards(name, list(forwards))
    if found is None:
        found = session.client.forwards(name)
    show(found, output)


def show(forwards: Sequence[schema.VmForward], output: str) -> None:
    """Print forwards."""
    data.show_list(
        msgspec.to_builtins(forwards),
        output,
        headings=("HOST", "GUEST", "PROTOCOL", "OPEN"),
        row=lambda f: (
            f"127.0.0.1:{f['host_port'] or 'any'}",
            str(f["guest_port"]),
            f["protocol"],
            yes_no(f["open"]),
        ),
        name="host_port",
        empty="nothing leads into this VM",
    )
