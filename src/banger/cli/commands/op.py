"""``banger op``: operations."""

from __future__ import annotations

from collections.abc import Sequence

import click

from banger.api import routes
from banger.cli import params
from banger.cli.commands.vm_look import age
from banger.cli.lazy import Entry, LazyGroup
from banger.cli.output import data, timeline, tracing
from banger.cli.output.data import Json
from banger.cli.output.text import dash
from banger.cli.session import Session, pass_session
from banger.model.units import format_duration

_C = "banger.cli.commands.op"
_TABLE: dict[str, Entry] = {
    "list": Entry(f"{_C}:list_operations", "List the newest operations."),
    "show": Entry(f"{_C}:show", "Show an operation with its stages."),
    "why": Entry("banger.cli.commands.op_why:why", "Compare an operation with earlier ones."),
    "wait": Entry(f"{_C}:wait", "Follow an operation to its end."),
    "cancel": Entry(f"{_C}:cancel", "Ask an operation to end."),
    "ls": Entry(f"{_C}:list_operations", "Alias of: list.", alias=True),
}


@click.group(cls=LazyGroup, lazy=_TABLE)
def op() -> None:
    """Follow and cancel operations: what the daemon does and did."""


def _took(duration_ms: float | None) -> str:
    return "-" if duration_ms is None else format_duration(duration_ms)


def _row(item: Json) -> Sequence[str]:
    return (
        item["id"],
        item["kind"],
        dash(item["target_name"]),
        item["state"],
        age(item["created_at"]),
        _took(item["duration_ms"]),
    )


@click.command("list")
@click.option("-n", "--limit", type=click.IntRange(1, 1000), default=30, show_default=True)
@data.format_option
@pass_session
def list_operations(session: Session, *, limit: int, output: str) -> None:
    """List the newest operations, newest first."""
    data.show_list(
        session.transport.fetch(routes.OPERATIONS_LIST, query={"limit": limit}),
        output,
        headings=("ID", "KIND", "TARGET", "STATE", "AGE", "TOOK"),
        row=_row,
        name="id",
        empty="no operations yet",
    )


def _pairs(item: Json) -> list[tuple[str, object]]:
    pairs: list[tuple[str, object]] = [
        ("id", item["id"]),
        ("kind", item["kind"]),
        ("target", item["target_name"]),
        ("state", item["state"]),
        ("created", item["created_at"]),
        ("took", _took(item["duration_ms"])),
    ]
    for stage, bar in zip(item["stages"], timeline.bars(item), strict=True):
        words = (bar, stage["state"], _took(stage["duration_ms"]), stage["detail"])
        pairs.append((f"  {stage['name']}", "  ".join(filter(None, words))))
    error = item["error"]
    if error:
        pairs += [("error", error["what"])]
        pairs += [("", line) for line in error["detail"].splitlines()[-20:]]
    return pairs


@click.command()
@click.argument("operation", type=params.OPERATION)
@tracing.option
@data.format_option
@pass_session
def show(session: Session, *, operation: str, trace: str | None, output: str) -> None:
    """Show an operation with its stages, and when each of them ran."""
    item = session.transport.fetch(routes.OPERATION_SHOW, {"id": operation})
    tracing.write(session, trace, [item["id"]])
    data.show_one(item, output, pairs=_pairs, name=item["id"])


@click.command()
@click.argument("operation", type=params.OPERATION)
@click.option("--timeout", type=params.TIMEOUT, help="Give up waiting after so many seconds.")
@tracing.option
@click.option(
    "--format", "output", type=click.Choice(["table", "json", "name"]), help="Also print it."
)
@pass_session
def wait(
    session: Session,
    *,
    operation: str,
    timeout: float | None,
    trace: str | None,
    output: str | None,
) -> None:
    """Follow an operation to its end; its error, if it failed, is this command's."""
    _follow(session, operation, timeout, trace, output)


@click.command()
@click.argument("operation", type=params.OPERATION)
@click.option("--no-wait", is_flag=True, help="Do not wait until it has undone what it made.")
@pass_session
def cancel(session: Session, *, operation: str, no_wait: bool) -> None:
    """Ask an operation to end, and wait until what it made is undone."""
    running = session.client.cancel(operation)
    final = running if no_wait else list(session.client.follow(running))[-1]
    said = "is being cancelled" if no_wait else f"is over: {final.state}"
    click.echo(f"operation {final.id} ({final.kind} of {final.target_name}) {said}", err=True)


def _follow(
    session: Session, ref: str, timeout_s: float | None, trace: str | None, output: str | None
) -> None:
    from banger.cli.output import progress  # noqa: PLC0415  only for those who wait

    begun = session.client.operation(ref)
    with tracing.of(session, trace, begun.id):
        progress.watch(session.client, begun, timeout_s=timeout_s)
    if output is not None:
        item = session.transport.fetch(routes.OPERATION_SHOW, {"id": begun.id})
        data.show_one(item, output, pairs=_pairs, name=item["id"])
