"""``banger secret``: values kept to be passed into guests. None is ever shown."""

from __future__ import annotations

import sys

import click

from banger.cli.output import data
from banger.cli.secret_store import MAX_VALUE_BYTES, SecretStore, check_name
from banger.cli.session import Session, pass_session
from banger.model.errors import BangerError


@click.group()
def secret() -> None:
    """Keep values, such as keys of APIs, to pass into guests.

    They lie in files of yours on this host. A guest gets one only for the session that names it (--forward-env NAME, or
    forward_env in the configuration), in its environment, and on no disk.
    """


@secret.command("set")
@click.argument("name")
@pass_session
def set_secret(session: Session, *, name: str) -> None:
    """Store the value that is typed, or comes on stdin, under NAME."""
    check_name(name)
    if sys.stdin.isatty():
        value = click.prompt(f"value of {name}", hide_input=True, err=True)
    else:
        value = sys.stdin.buffer.read(MAX_VALUE_BYTES + 2).decode(errors="surrogateescape")
        value = value.removesuffix("\n")
    SecretStore(session.config.secrets_dir).set(name, value)
    click.echo(f"stored; pass it on: banger exec --forward-env {name} VM -- COMMAND", err=True)


@secret.command("list")
@data.format_option
@pass_session
def list_secrets(session: Session, *, output: str) -> None:
    """List names; values are not shown."""
    names = SecretStore(session.config.secrets_dir).names()
    data.show_list(
        [{"name": name} for name in names],
        output,
        headings=("NAME",),
        row=lambda one: (one["name"],),
        name="name",
        empty="no secrets; store one: banger secret set NAME",
    )


@secret.command("delete")
@click.argument("names", metavar="NAME…", nargs=-1, required=True)
@pass_session
def delete(session: Session, *, names: tuple[str, ...]) -> None:
    """Remove what is stored under each NAME."""
    from banger.cli.output import errors  # noqa: PLC0415  it mostly goes well

    store, status = SecretStore(session.config.secrets_dir), 0
    for name in dict.fromkeys(names):
        try:
            store.delete(name)
        except BangerError as error:
            status = status or errors.show(error)
    raise click.exceptions.Exit(status)
