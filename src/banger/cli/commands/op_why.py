"""``banger op why``: an operation beside earlier ones of its kind."""

from __future__ import annotations

import click

from banger.api import routes
from banger.cli import params
from banger.cli.output import data
from banger.cli.output.data import Json
from banger.cli.output.timeline import Comparison, StageTime, compare
from banger.cli.session import Session, pass_session
from banger.model.units import format_duration

_MOST = 1000


@click.command()
@click.argument("operation", type=params.OPERATION)
@data.format_option
@pass_session
def why(session: Session, *, operation: str, output: str) -> None:
    """Compare an operation with the median of earlier ones, stage by stage, and name the slowest.

    Earlier ones are those of the same kind that succeeded, among the newest 1000 operations.
    """
    item = session.transport.fetch(routes.OPERATION_SHOW, {"id": operation})
    others = session.transport.fetch(routes.OPERATIONS_LIST, query={"limit": _MOST})
    found = compare(item, others)
    if output == "json":
        data.show_json(_json(item, found))
        return
    rows = [*found.stages, StageTime("all", found.took_ms, found.usual_ms)]
    data.show_list(
        [_stage(row) for row in rows],
        output,
        headings=("STAGE", "TOOK", "USUAL", "MORE"),
        row=lambda row: (row["name"], _time(row["took_ms"]), _time(row["usual_ms"]), _more(row)),
        name="name",
    )
    click.echo(_verdict(item, found), err=True)


def _stage(row: StageTime) -> Json:
    return {"name": row.name, "took_ms": row.took_ms, "usual_ms": row.usual_ms}


def _json(item: Json, found: Comparison) -> Json:
    return {
        "id": item["id"],
        "kind": item["kind"],
        "took_ms": found.took_ms,
        "usual_ms": found.usual_ms,
        "earlier": found.earlier,
        "slowest": found.slowest and found.slowest.name,
        "stages": [_stage(row) for row in found.stages],
    }


def _time(value_ms: float | None) -> str:
    return "-" if value_ms is None else format_duration(value_ms)


def _more(row: Json) -> str:
    if row["usual_ms"] is None:
        return "-"
    more_ms = row["took_ms"] - row["usual_ms"]
    return ("+" if more_ms >= 0 else "-") + format_duration(abs(more_ms))


def _verdict(item: Json, found: Comparison) -> str:
    """One sentence on where the time went."""
    if not found.earlier:
        longest = max(found.stages, key=lambda row: row.took_ms, default=None)
        said = f"; its longest stage was {longest.name}" if longest else ""
        return f"no earlier {item['kind']} to compare with{said}"
    if found.slowest is None:
        return f"no slower than the median of {found.earlier} earlier {item['kind']}"
    return (
        f"{found.slowest.name} took {format_duration(found.slowest.more_ms)} longer than the median of"
        f" {found.earlier} earlier {item['kind']}"
    )
