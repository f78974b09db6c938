"""``bangerd``: the daemon that owns the VMs of one user. The CLI starts it on demand; systemd may (docs/how-to/systemd.md)."""

from __future__ import annotations

import asyncio
import logging
import sys

import click

from banger import __version__
from banger.daemon import lifecycle, logs
from banger.host.config import load_config
from banger.model.errors import BangerError


@click.command()
@click.version_option(__version__, prog_name="bangerd")
@click.option(
    "--ready-fd", type=int, hidden=True, help="write one byte here once the socket listens"
)
def main(ready_fd: int | None) -> None:
    """Run the daemon in the foreground until SIGTERM or SIGINT. VMs outlive it."""
    try:
        config = load_config()
        logs.set_up(config.log_level)
        lock = lifecycle.prepare(config)
        if lock is None:
            click.echo(f"bangerd runs already for {config.state_dir}", err=True)
            return
        asyncio.run(lifecycle.serve(config, ready_fd))
    except BangerError as error:
        sys.exit(_show(error))
    except Exception as error:  # the outermost edge: the traceback is for the log
        logging.getLogger(__name__).exception("bangerd ends: internal error")
        what = f"internal error: {type(error).__name__}: {error}"
        sys.exit(_show(BangerError(what, hint="banger daemon logs")))


def _show(error: BangerError) -> int:
    """Print ``error``; the exit status."""
    click.echo(error.told(), err=True)
    return error.exit_status


if __name__ == "__main__":
    main()
