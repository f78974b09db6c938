"""``banger image sbom|diff`` and ``banger image build --explain``: what is, or would be, in an image."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click
import msgspec

from banger.cli import params
from banger.cli.output import data
from banger.cli.output.data import Json
from banger.cli.output.text import clean, dash
from banger.cli.session import Session, pass_session
from banger.model.units import format_size

if TYPE_CHECKING:
    from banger.api import schema

_SHOWN_DIGEST_CHARS = 12


@click.command()
@click.argument("name", type=params.IMAGE)
@pass_session
def sbom(session: Session, *, name: str) -> None:
    """Print an image's inventory as SPDX 2.3 in JSON: packages with their versions and origins, and the files that boot it."""
    data.show_json(session.client.image_sbom(name))


@click.command()
@click.argument("before", type=params.IMAGE)
@click.argument("after", type=params.IMAGE)
@click.option("--packages", "only", flag_value="packages", help="Packages alone.")
@click.option("--files", "only", flag_value="files", help="Files alone.")
@data.format_option
@pass_session
def diff(session: Session, *, before: str, after: str, only: str | None, output: str) -> None:
    """Show what the image AFTER has otherwise than BEFORE: packages by version, files of the root by mode, owner, size and digest.

    The first time an image is compared its files are read, which takes seconds.
    """
    found = msgspec.to_builtins(session.client.image_diff(before, after))
    if output == "json":
        data.show_json(found)
        return
    rows = [
        {"kind": kind.removesuffix("s"), **item}
        for kind in ("packages", "files")
        if only in {None, kind}
        for item in found[kind]
    ]
    data.show_list(
        rows,
        output,
        headings=("WHAT", "KIND", "NAME", "BEFORE", "AFTER"),
        row=_row,
        name="name",
        empty=f"{found['before']} and {found['after']} do not differ",
    )


def _row(item: Json) -> tuple[str, ...]:
    return item["what"], item["kind"], item["name"], dash(item["before"]), dash(item["after"])


def print_plan(plan: schema.ImagePlan, output: str) -> None:
    """What ``--explain`` leaves on stdout."""
    if output == "json":
        data.show_json(msgspec.to_builtins(plan))
        return
    if output == "name":
        click.echo("\n".join(stage.name for stage in plan.stages))
        return
    digests = [
        f"{name} {digest[:_SHOWN_DIGEST_CHARS]}" for name, digest in {**plan.files, **plan.hooks}.items()
    ]  # fmt: skip
    cached = f"{plan.cached_files} files, {format_size(plan.cached_bytes)}"
    pairs = [
        ("image", plan.image),
        ("recipe", plan.recipe),
        ("system", plan.system),
        ("inputs", plan.inputs_digest),
        ("up to date", plan.up_to_date or "no"),
        ("mirrors", ", ".join(plan.mirrors) or "the tools' default"),
        ("packages", " ".join(plan.packages)),
        ("users", " ".join(plan.users)),
        ("files, hooks", ", ".join(digests)),
        ("services", ", ".join(plan.services)),
        ("cached", cached if plan.cached_files else ""),
    ]
    click.echo(data.fields([(name, clean(str(value))) for name, value in pairs]))
    for stage in plan.stages:
        click.echo(f"\n{stage.name}: {clean(stage.detail)}")
        for argv in stage.commands:
            click.echo(f"  {clean(shlex.join(argv))}")
