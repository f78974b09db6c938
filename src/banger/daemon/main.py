"""``bangerd``: the daemon that owns the VMs of one user. The CLI starts it on demand; systemd may (see docs/how-to)."""

from __future__ import annotations

import asyncio
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
        click.echo(f"error: {error.what}", err=True)
        if error.detail:
            click.echo(error.detail, err=True)
        if error.hint:
            click.echo(f"\nhint: {error.hint}", err=True)
        sys.exit(error.exit_status)


if __name__ == "__main__":
    main()
