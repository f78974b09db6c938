"""``banger doctor``."""

from __future__ import annotations

import click

from banger.doctor.checks import CHECKS
from banger.doctor.report import as_json, as_text, examine, failed
from banger.host.config import load_config

HOST_LACKS = 5


@click.command()
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
@click.pass_context
def doctor(context: click.Context, *, form: str) -> None:
    """Say what this host can do for VMs and what it lacks, each with one next step.

    Works without the daemon and as any user. Exit status 5 if no VM can be had as things are.
    """
    findings = examine(CHECKS, load_config())
    click.echo(as_json(findings) if form == "json" else as_text(findings))
    if failed(findings):
        context.exit(HOST_LACKS)
