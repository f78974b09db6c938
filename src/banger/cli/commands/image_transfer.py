"""``banger image import`` and ``export``: images that come from elsewhere, or go there."""

from __future__ import annotations

import os
from typing import Any

import click

from banger.api import schema
from banger.cli import params
from banger.cli.commands.image import finish
from banger.cli.output import data
from banger.cli.session import Session, pass_session
from banger.model.transfer import FORMATS

_NO_WAIT = click.option("--no-wait", is_flag=True, help="Print the operation's id and return at once.")  # fmt: skip


@click.command("import")
@click.argument("path", type=click.Path())
@click.option("--name", type=params.Name("image"), help="Name of the image.  [default: that in PATH, or PATH's]")  # fmt: skip
@click.option(
    "--kernel-from",
    type=params.IMAGE,
    help="The image whose kernel, initramfs and modules it gets, if it brings none.  [default: debian]",
)
@click.option("--ref", help="Which image, if PATH holds several: a tag such as python:3.12.")
@click.option(
    "--start-command", is_flag=True, help="Run the container's own command as a service of the guest."
)  # fmt: skip
@click.option(
    "--service",
    "services",
    type=params.SERVICE,
    multiple=True,
    help="A TCP service that must answer in the guest; repeatable.  [default: ssh, if it has an sshd]",
)
@click.option("--replace", is_flag=True, help="Take the name from an image that has it.")
@_NO_WAIT
@data.format_option
@pass_session
def import_image(session: Session, /, *, no_wait: bool, output: str, **given: Any) -> None:  # noqa: ANN401  the options above
    """Make an image out of PATH, which is copied.

    \b
    docker save -o web.tar web:latest && banger image import web.tar --name web

    PATH is a file that `banger image export` wrote, an OCI layout (a directory or a tar), what `docker save` wrote, or a root file
    system (a tar, an ext4 or a qcow2). What a guest needs and PATH lacks is added: an init, banger's agent, sshd's settings. All
    digests are verified, and nothing in PATH is run.
    """  # noqa: D301  \b keeps click from filling the line
    given["services"] = list(given["services"]) or None
    given["path"] = os.path.abspath(given["path"])  # noqa: PTH100  no symlinks resolved
    finish(session, session.client.import_image(schema.ImageImport(**given)), output, no_wait=no_wait)  # fmt: skip


@click.command("export")
@click.argument("name", type=params.IMAGE)
@click.argument("path", type=click.Path())
@click.option(
    "--as",
    "form",
    type=click.Choice(FORMATS),
    default="banger",
    help="banger: one file, the same image when it is imported. oci: a layout for container engines.  [default: banger]",
)
@click.option("--replace", is_flag=True, help="Overwrite a file at PATH.")
@_NO_WAIT
@data.format_option
@pass_session
def export_image(
    session: Session, *, name: str, path: str, form: str, replace: bool, no_wait: bool, output: str
) -> None:
    """Write the image NAME to PATH.

    \b
    banger image export debian debian.banger
    banger image export debian debian-oci --as oci

    An OCI layout is a directory, or one file if PATH ends in .tar. Its boot stack lies beside the layer, so that `banger image import`
    makes a bootable image of it.
    """  # noqa: D301  \b keeps click from filling the line
    wish = schema.ImageExport(os.path.abspath(path), form, replace)  # type: ignore[arg-type]  # noqa: PTH100  no symlinks resolved
    finish(session, session.client.export_image(name, wish), output, no_wait=no_wait)
