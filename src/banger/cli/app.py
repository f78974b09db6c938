"""The root command, and what surrounds every command: errors, exit status, Ctrl-C, a closed stdout."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import click

from banger import __version__
from banger.cli.lazy import Entry, LazyGroup
from banger.cli.pipes import BROKEN_PIPE
from banger.cli.session import Session
from banger.model.errors import BangerError

INTERRUPTED = 130  # 128 + SIGINT, as a shell says it
_C = "banger.cli.commands"

ROOT: dict[str, Entry] = {
    "run": Entry(f"{_C}.run:run", "Make a VM, wait until it is ready, SSH in or run a command."),
    "vm": Entry(f"{_C}.vm:vm", "Make, use, change and remove VMs."),
    "image": Entry(f"{_C}.image:image", "Build and manage images."),
    "runtime": Entry(f"{_C}.runtime:runtime", "The bundle of firecracker and jailer."),
    "op": Entry(f"{_C}.op:op", "Follow and cancel operations."),
    "events": Entry(f"{_C}.events:events", "Show what happened, and what happens."),
    "df": Entry(f"{_C}.disk:df", "Say what VMs and images take of the disk."),
    "prune": Entry(f"{_C}.disk:prune", "Remove what nothing uses."),
    "audit": Entry(f"{_C}.audit:audit", "Say where record and host differ, and mend it."),
    "daemon": Entry(f"{_C}.daemon:daemon", "The daemon that owns the VMs."),
    "secret": Entry(f"{_C}.secret:secret", "Keep values to pass into guests."),
    "config": Entry(f"{_C}.config:config", "Look at the configuration."),
    "setup": Entry(f"{_C}.setup:setup", "Fit banger into this account or host."),
    "doctor": Entry("banger.doctor.command:doctor", "Say what this host lacks."),
    "bench": Entry(f"{_C}.bench:bench", "Measure banger on this host."),
    "completion": Entry(f"{_C}.completion:completion", "Print the completion script of a shell."),
    "ls": Entry(f"{_C}.vm_look:list_vms", "Alias of: banger vm list.", alias=True),
    "ps": Entry(f"{_C}.vm_look:list_vms", "Alias of: banger vm list.", alias=True),
    "rm": Entry(f"{_C}.vm_life:delete", "Alias of: banger vm delete.", alias=True),
    "ssh": Entry(f"{_C}.vm_ssh:ssh", "Alias of: banger vm ssh.", alias=True),
    "exec": Entry(f"{_C}.vm_exec:exec_command", "Alias of: banger vm exec.", alias=True),
}


@click.group(cls=LazyGroup, lazy=ROOT, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="banger")
@click.option("--debug", is_flag=True, help="Show tracebacks.")
@click.pass_context
def cli(context: click.Context, *, debug: bool) -> None:
    """Disposable Debian microVMs on this host.

    \b
    banger run                    a fresh VM, and a shell in it
    banger run --rm -- uname -a   one command in a VM that is deleted afterwards
    banger vm list                what there is
    """  # noqa: D301  \b keeps click from filling the lines
    session = context.ensure_object(Session)
    session.debug = session.debug or debug


def run(arguments: Sequence[str]) -> int:
    """Run one command line; its exit status. Nothing but a bug in click gets out of here."""
    session = Session()
    session.debug = os.environ.get("BANGER_DEBUG", "") not in {"", "0"}
    try:
        status = cli.main(list(arguments), prog_name="banger", standalone_mode=False, obj=session)
        sys.stdout.flush()
        return status if isinstance(status, int) else 0
    except BrokenPipeError:
        _silence_stdout()
        return BROKEN_PIPE
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted", err=True)
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  the outermost edge: every error becomes a message and a status
        from banger.cli.output import errors  # noqa: PLC0415  most commands end well

        if session.debug and not isinstance(error, click.ClickException):
            import traceback  # noqa: PLC0415  as above

            traceback.print_exc()
        if isinstance(error, OSError) and not isinstance(error, BangerError):
            error = errors.from_os(error)
        return errors.show(error)
    finally:
        session.close()


def _silence_stdout() -> None:
    """Point stdout at nothing, so that the interpreter's last flush does not fail as well."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)
