"""``banger audit``: what exists without a record, and what is on record and gone."""

from __future__ import annotations

import json
from collections.abc import Sequence

import click

from banger.api import routes
from banger.cli.output import data
from banger.cli.output.data import Json
from banger.cli.session import Session, pass_session

SLOW_S = 600.0
_RESIDUE = 1
HEADINGS = ("KIND", "SENSE", "NAME", "WHAT", "DONE BY --fix")
FIXED_HEADINGS = ("KIND", "NAME", "WHAT", "DONE")


def _row(item: Json) -> Sequence[str]:
    can = "nothing" if item["remedy"] == "none" else item["remedy"]
    return item["kind"], item["sense"], item["name"], item["what"], can


def _fixed_row(item: Json) -> Sequence[str]:
    return item["kind"], item["name"], item["what"], _done(item)


def _done(item: Json) -> str:
    if item["fixed"]:
        return str(item["did"])
    if item["error"] is not None:
        return f"could not be done: {item['error']['what']}"
    return f"left as it is; {item['hint']}" if item["hint"] else "left as it is"


@click.command()
@click.option("--fix", is_flag=True, help="Mend what can be mended, and say what was done.")
@data.format_option
@pass_session
def audit(session: Session, *, fix: bool, output: str) -> None:
    """Say where record and host differ; the exit status is 1 if they do, or with --fix still do.

    That is what exists with no record (processes, links of the network, devices, sockets, directories, rests of interrupted work) and what is
    on record and gone. --fix undoes only what is certainly banger's and of no VM, brings VMs whose VMM is gone to a truthful state, and takes up VMs
    whose record was lost. TAPs that are kept ready, and what others made, are no residue.
    """
    route = routes.AUDIT_FIX if fix else routes.AUDIT
    items = json.loads(session.transport.call(route, {}, timeout_s=SLOW_S))
    headings, row = (FIXED_HEADINGS, _fixed_row) if fix else (HEADINGS, _row)
    data.show_list(items, output, headings=headings, row=row, empty="record and host agree")
    left = [item for item in items if not item["fixed"]]
    if left and not fix:
        for hint in dict.fromkeys(filter(None, (item["hint"] for item in left))):
            click.echo(f"hint: {hint}", err=True)
    if left:
        raise click.exceptions.Exit(_RESIDUE)
