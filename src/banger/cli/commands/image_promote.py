"""``banger image promote``: an image out of a stopped VM."""

from __future__ import annotations

import click

from banger.cli import params
from banger.cli.output import data
from banger.cli.session import Session, pass_session


@click.command()
@click.argument("vm", type=params.VM)
@click.option("--name", type=params.Name("image"), required=True, help="Name of the image.")
@click.option(
    "--with-work",
    is_flag=True,
    help="Let the work disk become what work disks of the image begin as.  [default: that of the VM's image]",
)
@click.option("--clean-history", is_flag=True, help="Leave out what shells remember.")
@click.option("--replace", is_flag=True, help="Take the name from an image that has it.")
@click.option("--no-wait", is_flag=True, help="Print the operation's id and return at once.")
@data.format_option
@pass_session
def promote(
    session: Session,
    *,
    vm: str,
    name: str,
    with_work: bool,
    clean_history: bool,
    replace: bool,
    no_wait: bool,
    output: str,
) -> None:
    """Make an image out of VM, which is stopped and stays as it is.

    Host keys, machine-id, agent token, host name, DHCP leases and logs are left out; everything else of its root disk is part of the image,
    and with --with-work all of /root, your keys included.
    """
    from banger.api import schema  # noqa: PLC0415  the other commands of this group do without
    from banger.cli.commands.image import print_image  # noqa: PLC0415  as above
    from banger.cli.commands.vm_make import print_operation  # noqa: PLC0415  as above
    from banger.cli.output import progress  # noqa: PLC0415  as above

    wish = schema.ImagePromote(name, with_work, clean_history, replace)
    operation = session.client.promote_vm(vm, wish)
    if no_wait:
        print_operation(operation, output)
        return
    progress.watch(session.client, operation)
    print_image(session, name, output)
