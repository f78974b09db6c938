"""``banger events``: what happened, and what happens."""

from __future__ import annotations

from collections.abc import Sequence

import click
import msgspec

from banger.api import routes
from banger.api.schema import ResidueEvent, Stage, VmEvent
from banger.cli.output import data
from banger.cli.output.data import Json
from banger.cli.output.text import clean
from banger.cli.session import Session, pass_session
from banger.client.follow import FINAL
from banger.client.happenings import Happened
from banger.model.units import format_duration

INTERRUPTED = 130


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens, until Ctrl-C.")
@click.option(
    "-n",
    "--limit",
    type=click.IntRange(0, 1000),
    default=20,
    show_default=True,
    help="So many operations of the past.",
)
@click.option(
    "--format", "output", type=click.Choice(["table", "json"]), default="table", show_default=True
)
@pass_session
def events(session: Session, *, follow: bool, limit: int, output: str) -> None:
    """Show the newest operations, oldest first, and with -f everything that happens from now on: operations, their stages, VMs' states.

    JSON is an object a line: what the API sends.
    """
    stream = session.client.events() if follow else None
    past = session.transport.fetch(routes.OPERATIONS_LIST, query={"limit": limit}) if limit else []
    for item in reversed(past):
        _show(item, _operation(item), output)
    if stream is None:
        return
    try:
        for event in stream:
            _show(msgspec.to_builtins(event), line(event), output)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(INTERRUPTED) from None


def _show(item: Json, text: str | None, output: str) -> None:
    if output == "json":
        data.show_json_line(item)
    elif text is not None:
        click.echo(clean(text))


def line(event: Happened) -> str | None:
    """What a person reads of it; None for what is only a step on the way."""
    if isinstance(event, VmEvent):
        trouble = f": {event.trouble}" if event.trouble and event.state == "failed" else ""
        return f"{event.at}  vm {event.name} is {event.state or 'deleted'}{trouble}"
    if isinstance(event, ResidueEvent):
        return f"{event.at}  audit: {event.residue.what}"
    operation, stage = event.operation, event.stage
    if stage is not None:
        return _stage(stage, f"{operation.kind} {operation.target_name}")
    if operation.state == "running" and not operation.stages:
        return f"{operation.created_at}  {operation.kind} {operation.target_name} begins ({operation.id})"
    return _operation(msgspec.to_builtins(operation)) if operation.state in FINAL else None


def _stage(stage: Stage, of: str) -> str | None:
    if stage.state not in FINAL:
        return None
    words: Sequence[str] = (
        f"{stage.started_at}  {of}: {stage.name} {stage.state}",
        _took(stage.duration_ms),
        stage.detail,
    )
    return "  ".join(filter(None, words))


def _operation(item: Json) -> str:
    error = item["error"]
    said = f": {error['what']}" if error else ""
    words = (
        f"{item['created_at']}  {item['kind']} {item['target_name']} {item['state']}{said}",
        _took(item["duration_ms"]),
    )
    return "  ".join(filter(None, words))


def _took(duration_ms: float | None) -> str:
    return "" if duration_ms is None else format_duration(duration_ms)
