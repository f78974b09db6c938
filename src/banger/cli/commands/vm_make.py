"""``vm create`` and ``vm set``, and the options that ``run`` shares with ``create``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import click
import msgspec
from msgspec import UNSET

from banger.api import schema
from banger.cli import params
from banger.cli.commands.vm_look import print_vm
from banger.cli.output import data, progress, tracing
from banger.cli.output.text import dash
from banger.cli.session import Session, pass_session, warn_of_version
from banger.model.errors import InvalidInputError
from banger.model.units import parse_size

_F = TypeVar("_F", bound=Callable[..., Any])
_VMMS = ("auto", "firecracker", "qemu")
_NETWORKS = ("auto", "bridge", "user", "none")

_OPTIONS = (
    click.option("--name", type=params.Name(), help="Name of the VM.  [default: a random one]"),
    click.option("--vcpus", type=click.IntRange(min=1), help="Virtual CPUs.  [default: 2]"),
    click.option("--memory", type=params.SIZE, help="Memory.  [default: 2G]"),
    click.option("--disk-size", type=params.SIZE, help="Root disk.  [default: the image's]"),
    click.option("--work-size", type=params.SIZE, help="Work disk, at /root.  [default: 16G]"),
    click.option("--vmm", type=click.Choice(_VMMS), help="Which VMM.  [default: auto]"),
    click.option("--network", type=click.Choice(_NETWORKS), help="Network.  [default: auto]"),
    click.option("--nat/--no-nat", default=True, help="Whether the VM reaches the outside."),
    click.option(
        "--group",
        "groups",
        metavar="GROUP",
        multiple=True,
        help="VMs of the same group reach each other; repeatable.",
    ),
    click.option(
        "--forward",
        "forwards",
        type=params.FORWARD,
        multiple=True,
        help="Port of 127.0.0.1 that leads to one of the guest; repeatable.",
    ),
    click.option(
        "--autostart/--no-autostart",
        default=False,
        help="Whether it is started again after the host was, if it ran then.",
    ),
    click.option("--timeout", type=params.TIMEOUT, help="Seconds until the guest must be ready."),
    params.WAIT,
    tracing.option,
)


def vm_options(function: _F) -> _F:
    """The options that say what a VM is; their defaults come from the configuration."""
    for option in reversed(_OPTIONS):
        function = option(function)
    return function


def wish(session: Session, given: dict[str, Any]) -> schema.VmCreate:
    """The request for a VM: what was ``given``, and the configuration for the rest."""
    config = session.config

    def size(key: str, fallback: str | None) -> int | None:
        if given[key] is not None:
            return int(given[key])
        return None if fallback is None else parse_size(fallback, what=key)

    memory = size("memory", config.memory) or 0
    return schema.VmCreate(
        name=given["name"],
        image=given["image"] or config.default_image,
        vcpus=given["vcpus"] or config.vcpus,
        memory_mib=params.whole_mib(memory, "--memory"),
        disk_bytes=size("disk_size", config.disk_size),
        work_bytes=size("work_size", config.work_size) or 0,
        vmm=cast("schema.VmmName", given["vmm"] or config.vmm),
        network=cast("schema.NetworkName", given["network"] or config.network),
        nat=given["nat"],
        groups=list(dict.fromkeys(given["groups"])),
        forwards=list(given["forwards"]),
        autostart=given["autostart"],
        timeout_s=given["timeout"],
        wait=given["wait"],
    )


def begin(session: Session, request: schema.VmCreate) -> schema.Operation:
    """Ask for a VM; warns first if the daemon is of another version."""
    try:
        operation = session.client.create_vm(request)
    except KeyboardInterrupt:
        click.echo("\ninterrupted before the daemon had answered\n\nhint: banger op list", err=True)
        raise progress.DetachedError(130) from None
    with progress.detachable(operation):
        if session.transport.daemon_version is None:
            warn_of_version(session.client.info().version)
    return operation


@click.command(context_settings={"allow_extra_args": True})
@click.option("--image", type=params.IMAGE, help="Image to start from.  [default: debian]")
@vm_options
@click.option("--no-start", is_flag=True, help="Only make it.")
@click.option("--no-wait", is_flag=True, help="Print the operation's id and return at once.")
@click.option("--dry-run", is_flag=True, help="Only print the steps.")
@data.format_option
@pass_session
@click.pass_context
def create(
    context: click.Context,
    session: Session,
    /,
    *,
    no_start: bool,
    no_wait: bool,
    dry_run: bool,
    output: str,
    **given: Any,  # noqa: ANN401  vm_options
) -> None:
    """Make a VM and, unless told otherwise, start it and wait until it is ready."""
    if context.args:
        word = context.args[0]
        raise click.UsageError(f"unexpected argument {word!r}; to name the VM: --name {word}")
    tracing.check(given["trace"], waits=not (no_wait or dry_run))
    request = wish(session, given)
    request.start = not no_start
    if dry_run:
        print_plan(session.client.plan_create(request), output)
        return
    operation = begin(session, request)
    if no_wait:
        print_operation(operation, output)
        return
    with tracing.of(session, given["trace"], operation.id):
        final = progress.watch(session.client, operation)
    print_vm(session, final.target, output)


def print_plan(steps: Sequence[schema.PlannedStep], output: str) -> None:
    """What a dry run leaves on stdout."""
    data.show_list(
        msgspec.to_builtins(steps),
        output,
        headings=("STAGE", "WHAT", "LEAVES"),
        row=lambda step: (step["stage"], step["what"], dash(", ".join(step["effects"]))),
        name="stage",
        empty="nothing is to be done",
    )


def print_operation(operation: schema.Operation, output: str) -> None:
    """What ``--no-wait`` leaves on stdout: the operation's id, or its JSON."""
    if output == "json":
        data.show_json(msgspec.to_builtins(operation))
    else:
        click.echo(operation.id)


@click.command("set")
@click.argument("name", type=params.VM)
@click.option("--name", "new_name", type=params.Name(), help="A new name.")
@click.option("--vcpus", type=click.IntRange(min=1), help="Virtual CPUs.")
@click.option("--memory", type=params.SIZE, help="Memory.")
@click.option("--work-size", type=params.SIZE, help="Work disk; it can only grow.")
@click.option(
    "--forward", "forwards", type=params.FORWARD, multiple=True, help="Forwards; replaces all."
)
@click.option("--no-forwards", is_flag=True, help="Remove all forwards.")
@click.option("--nat/--no-nat", default=None, help="Whether the VM reaches the outside.")
@click.option("--group", "groups", metavar="GROUP", multiple=True, help="Groups; replaces all.")
@click.option("--no-groups", is_flag=True, help="Leave all groups.")
@click.option("--network", type=click.Choice(_NETWORKS), help="Network at the next start.")
@click.option(
    "--autostart/--no-autostart",
    default=None,
    help="Whether it is started again after the host was.",
)
@data.format_option
@pass_session
def change(
    session: Session,
    *,
    name: str,
    new_name: str | None,
    vcpus: int | None,
    memory: int | None,
    work_size: int | None,
    forwards: tuple[schema.Forward, ...],
    no_forwards: bool,
    nat: bool | None,
    groups: tuple[str, ...],
    no_groups: bool,
    network: str | None,
    autostart: bool | None,
    output: str,
) -> None:
    """Change a VM. Forwards, NAT, groups and autostart may change while it runs; the rest while it is stopped."""
    if forwards and no_forwards:
        raise click.UsageError("--forward and --no-forwards exclude each other")
    if groups and no_groups:
        raise click.UsageError("--group and --no-groups exclude each other")
    patch = schema.VmPatch(
        name=UNSET if new_name is None else new_name,
        vcpus=UNSET if vcpus is None else vcpus,
        memory_mib=UNSET if memory is None else params.whole_mib(memory, "--memory"),
        work_bytes=UNSET if work_size is None else work_size,
        forwards=list(forwards) if forwards or no_forwards else UNSET,
        nat=UNSET if nat is None else nat,
        groups=list(dict.fromkeys(groups)) if groups or no_groups else UNSET,
        network=UNSET if network is None else cast("schema.NetworkName", network),
        autostart=UNSET if autostart is None else autostart,
    )
    if patch == schema.VmPatch():
        raise InvalidInputError("nothing to change was given", hint="banger vm set --help")
    print_vm(session, session.client.set_vm(name, patch).id, output)
