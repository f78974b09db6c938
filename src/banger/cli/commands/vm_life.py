"""Verbs that take VMs from one state to another; each takes several VMs and goes on after one that failed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from banger.api.schema import Operation, WaitName
from banger.cli import params
from banger.cli.commands.vm_look import print_vm, warn
from banger.cli.commands.vm_make import print_operation, print_plan
from banger.cli.output import errors, progress, tracing
from banger.cli.session import Session, pass_session
from banger.model.errors import BangerError
from banger.model.units import format_duration

_F = TypeVar("_F", bound=Callable[..., Any])
DONE = {
    "vm.start": "is running",
    "vm.restart": "is running",
    "vm.stop": "is stopped",
    "vm.pause": "is paused",
    "vm.resume": "is running",
    "vm.delete": "is deleted",
}


def _names(*, required: bool = True) -> Callable[[_F], _F]:
    return click.argument("names", metavar="NAME…", type=params.VM, nargs=-1, required=required)


def _common(function: _F) -> _F:
    no_wait = click.option("--no-wait", is_flag=True, help="Print operation ids, return at once.")
    output = click.option(
        "--format",
        "output",
        type=click.Choice(["table", "json", "name"]),
        help="Also print the VM.  [default: nothing]",
    )
    return no_wait(output(function))


def apply(
    session: Session,
    names: Sequence[str],
    verb: Callable[[str], Operation],
    *,
    no_wait: bool,
    output: str | None,
    trace: str | None = None,
    gone: bool = False,
) -> None:
    """Begin ``verb`` on all VMs, then watch each; the exit status is the first failure's."""
    tracing.check(trace, waits=not no_wait)
    status = 0
    begun = []
    for name in dict.fromkeys(names):
        try:
            begun.append(verb(name))
        except BangerError as error:
            status = status or errors.show(error)
    for operation in begun:
        if no_wait:
            print_operation(operation, output or "table")
            continue
        try:
            final = progress.watch(session.client, operation)
        except BangerError as error:
            status = status or errors.show(error)
            continue
        took = format_duration(final.duration_ms or 0)
        done = DONE.get(final.kind, "is done")
        click.echo(f"{final.target_name} {done} ({took})", err=True)
        if final.kind in {"vm.start", "vm.restart"} and output is None:
            warn(session.client.vm(final.target).status.warning)
        if output is not None:
            if gone:
                print_operation(final, output)
            else:
                print_vm(session, final.target, output)
    tracing.write(session, trace, [operation.id for operation in begun])
    if status:
        raise click.exceptions.Exit(status)


@click.command()
@_names()
@click.option("--timeout", type=params.TIMEOUT, help="Seconds until the guest must be ready.")
@params.WAIT
@tracing.option
@click.option("--dry-run", is_flag=True, help="Only print the steps.")
@_common
@pass_session
def start(
    session: Session,
    *,
    names: Sequence[str],
    timeout: float | None,
    wait: WaitName,
    trace: str | None,
    dry_run: bool,
    no_wait: bool,
    output: str | None,
) -> None:
    """Start VMs and wait until they are ready."""
    tracing.check(trace, waits=not dry_run)
    if dry_run:
        for name in names:
            print_plan(session.client.plan_start(name), output or "table")
        return
    apply(
        session,
        names,
        lambda name: session.client.start_vm(name, timeout_s=timeout, wait=wait),
        no_wait=no_wait,
        output=output,
        trace=trace,
    )


@click.command()
@_names()
@click.option("--force", is_flag=True, help="End the VMM at once, as a power cut would.")
@click.option("--timeout", type=params.TIMEOUT, help="Seconds the guest has to shut down.")
@_common
@pass_session
def stop(
    session: Session,
    *,
    names: Sequence[str],
    force: bool,
    timeout: float | None,
    no_wait: bool,
    output: str,
) -> None:
    """Shut VMs down."""
    apply(
        session,
        names,
        lambda name: session.client.stop_vm(name, force=force, timeout_s=timeout),
        no_wait=no_wait,
        output=output,
    )


@click.command()
@_names()
@click.option("--timeout", type=params.TIMEOUT, help="Seconds until the guest must be ready.")
@params.WAIT
@tracing.option
@_common
@pass_session
def restart(
    session: Session,
    *,
    names: Sequence[str],
    timeout: float | None,
    wait: WaitName,
    trace: str | None,
    no_wait: bool,
    output: str,
) -> None:
    """Stop VMs, then start them and wait until they are ready."""
    apply(
        session,
        names,
        lambda name: session.client.restart_vm(name, timeout_s=timeout, wait=wait),
        no_wait=no_wait,
        output=output,
        trace=trace,
    )


@click.command()
@_names()
@_common
@pass_session
def pause(session: Session, *, names: Sequence[str], no_wait: bool, output: str) -> None:
    """Stop the vCPUs of VMs; their memory stays."""
    apply(session, names, session.client.pause_vm, no_wait=no_wait, output=output)


@click.command()
@_names()
@_common
@pass_session
def resume(session: Session, *, names: Sequence[str], no_wait: bool, output: str) -> None:
    """Let paused VMs go on."""
    apply(session, names, session.client.resume_vm, no_wait=no_wait, output=output)


@click.command()
@_names(required=False)
@click.option("--all", "everything", is_flag=True, help="Delete every VM.")
@_common
@pass_session
def delete(
    session: Session, *, names: Sequence[str], everything: bool, no_wait: bool, output: str
) -> None:
    """Delete VMs and their disks; one that runs is ended first."""
    if everything == bool(names):
        raise click.UsageError("name the VMs, or say --all")
    if everything:
        names = [vm.id for vm in session.client.vms()]
        if not names:
            click.echo("no VMs", err=True)
    apply(session, names, session.client.delete_vm, no_wait=no_wait, output=output, gone=True)
