"""``banger run``: a fresh VM, and a shell or a command in it."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import click

from banger.api.schema import Operation
from banger.cli import forward_env, params, reminder
from banger.cli.commands.vm_look import print_vm, warn
from banger.cli.commands.vm_make import begin, print_operation, vm_options, wish
from banger.cli.commands.vm_ssh import ssh_argv
from banger.cli.forward_env import forwarded
from banger.cli.output import data, errors, progress, tracing
from banger.cli.session import Session, pass_session
from banger.host import exec as host_exec
from banger.model.compat import override
from banger.model.errors import BangerError, NotFoundError

INTERRUPTED = 130
_COMMAND = "banger.run.command"


class _WithCommand(click.Command):
    """Takes what stands after ``--`` as the command, so that IMAGE before it may be left out."""

    @override
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Split at the first ``--``."""
        at = args.index("--") if "--" in args else len(args)
        ctx.meta[_COMMAND] = args[at + 1 :]
        return super().parse_args(ctx, args[:at])

    @override
    def collect_usage_pieces(self, ctx: click.Context) -> list[str]:
        """With the command."""
        return [*super().collect_usage_pieces(ctx), "[-- COMMAND…]"]


@click.command(cls=_WithCommand)
@click.argument("image", type=params.IMAGE, required=False)
@vm_options
@forward_env.option
@click.option("--rm", "remove", is_flag=True, help="Delete the VM afterwards, however it ends.")
@click.option("--no-wait", is_flag=True, help="Print the operation's id and return at once.")
@data.format_option
@pass_session
def run(
    session: Session,
    /,
    *,
    forward_env: tuple[str, ...],
    remove: bool,
    no_wait: bool,
    output: str,
    **given: Any,  # noqa: ANN401  vm_options
) -> None:
    """Make a VM, wait until it is ready, then log in or run COMMAND over SSH; COMMAND's exit status.

    COMMAND stands after --, as in: banger run --rm -- make test. Without a COMMAND and without a terminal the VM is printed.
    """
    command: Sequence[str] = click.get_current_context().meta[_COMMAND]
    if no_wait and (remove or command):
        raise click.UsageError("--no-wait does not go with --rm or a COMMAND")
    if given["wait"] == "booted" and not no_wait:
        raise click.UsageError("run logs in over SSH, so it waits for the agent at least")
    tracing.check(given["trace"], waits=not no_wait)
    env = forwarded(session.config, forward_env)
    operation = begin(session, wish(session, given))
    if no_wait:
        print_operation(operation, output)
        return
    try:
        hint = f"banger vm delete {operation.target_name}" if remove else ""
        with tracing.of(session, given["trace"], operation.id):
            progress.watch(session.client, operation, detach_hint=hint)
        status = _use(session, operation, command, output, env, remove=remove)
    except progress.DetachedError:
        raise  # it goes on; how to delete it was said
    except BaseException:
        if remove:
            _remove(session, operation)
        raise
    if remove:
        status = _remove(session, operation) or status
    raise click.exceptions.Exit(status)


def _use(
    session: Session,
    operation: Operation,
    command: Sequence[str],
    output: str,
    env: Mapping[str, str],
    *,
    remove: bool,
) -> int:
    terminal = sys.stdin.isatty() and sys.stdout.isatty()
    if not command and not terminal:
        print_vm(session, operation.target, output)
        if not remove:
            click.echo(f"log in: banger ssh {operation.target_name}", err=True)
        return 0
    vm = session.client.vm(operation.target)
    warn(vm.status.warning)
    words = [shlex.join(command)] if command else []
    argv = ssh_argv(session.config, vm, words, tty=terminal, send=env)
    sys.stdout.flush()
    try:
        status = host_exec.run_interactive(argv, env=env)
    except KeyboardInterrupt:
        return INTERRUPTED
    if not remove and command:
        click.echo(f"VM {vm.name} goes on; log in: banger ssh {vm.name}", err=True)
    elif not remove and reminder.wanted(session.config, command):
        reminder.remind(session.config, vm, status)
    return status


def _remove(session: Session, operation: Operation) -> int:
    """Delete the VM, with messages but without an exception; 0, or the exit status of what went wrong."""
    try:
        deleting = session.client.delete_vm(operation.target)
        session.client.wait(deleting)
    except NotFoundError:
        return 0  # its creation failed and was undone
    except KeyboardInterrupt:
        click.echo(f"hint: banger vm delete {operation.target_name}", err=True)
        return INTERRUPTED
    except BangerError as error:
        return errors.show(error)
    return 0
