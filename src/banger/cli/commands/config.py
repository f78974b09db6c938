"""``banger config``: what is configured, and where it comes from."""

from __future__ import annotations

import os

import click

from banger.cli.output import data
from banger.cli.output.text import dash
from banger.cli.session import Session, pass_session
from banger.host import paths


@click.group()
def config() -> None:
    """Look at the configuration.

    Every key can be set in the file, or as BANGER_<KEY> in the environment, which wins.
    """


@config.command()
@data.format_option
@pass_session
def show(session: Session, *, output: str) -> None:
    """Show every key, its value and where that comes from."""
    values = session.config.values()
    if output == "json":
        data.show_json(values)
    elif output == "name":
        for key in values:
            click.echo(key)
    else:
        sources = session.config.sources
        rows = [
            (key, _written(value), sources.get(key, "default")) for key, value in values.items()
        ]
        click.echo(data.table(("KEY", "VALUE", "SOURCE"), rows))


def _written(value: object) -> str:
    """``value`` as TOML and people write it."""
    return str(value).lower() if isinstance(value, bool) else dash(value)


@config.command()
@data.format_option
def path(*, output: str) -> None:
    """Print the path of the configuration file, which need not exist, and may be wrong."""
    data.show_text(str(paths.config_path(os.environ)), output, key="path")
