"""``banger doctor``."""

from __future__ import annotations

import click

from banger.doctor.check import Check
from banger.doctor.checks import CHECKS
from banger.doctor.report import as_json, as_text, examine, failed, mend
from banger.host.config import load_config

HOST_LACKS = 5


@click.command()
@click.option(
    "--production", is_flag=True, help="Also ask what a host of strangers' VMs should have."
)
@click.option("--fix", is_flag=True, help="Mend what can be mended without harm.")
@click.option(
    "--format", "form", type=click.Choice(["table", "json"]), default="table", show_default=True
)
@click.pass_context
def doctor(context: click.Context, *, production: bool, fix: bool, form: str) -> None:
    """Say what this host can do for VMs and what it lacks, each with one next step.

    Works without the daemon and as any user. Exit status 5 if no VM can be had as things are.
    """
    checks: tuple[Check, ...] = CHECKS
    if production:
        from banger.doctor import production as advice  # noqa: PLC0415  only when it is asked for

        checks = (*CHECKS, *advice.checks())
    config = load_config()
    findings = examine(checks, config)
    if fix:
        for sentence in mend(checks, findings, config):
            click.echo(sentence, err=True)
        findings = examine(checks, config)
    click.echo(as_json(findings) if form == "json" else as_text(findings))
    if failed(findings):
        context.exit(HOST_LACKS)
