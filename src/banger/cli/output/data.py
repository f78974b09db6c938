"""Data on stdout in the format that was asked for: a table for people, the API's JSON, or bare names for scripts."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import click

from banger.cli.output.text import clean, dash

Json = Mapping[str, Any]
_F = TypeVar("_F", bound=Callable[..., Any])
GAP = "  "


def format_option(function: _F) -> _F:
    """``--format table|json|name`` as the parameter ``output``."""
    return click.option(
        "--format",
        "output",
        type=click.Choice(["table", "json", "name"]),
        default="table",
        show_default=True,
        help="How to print the result.",
    )(function)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns under ``headings``, as wide as their content; no trailing blanks."""
    lines = [tuple(headings), *(tuple(clean(cell) for cell in row) for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(headings))]
    return "\n".join(
        GAP.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in lines
    )


def fields(pairs: Sequence[tuple[str, object]]) -> str:
    """``name  value`` lines, values aligned."""
    width = max(len(name) for name, _ in pairs)
    return "\n".join(f"{name.ljust(width)}{GAP}{dash(value)}".rstrip() for name, value in pairs)


def show_json(value: object) -> None:
    """``value`` as JSON."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def show_json_line(value: object) -> None:
    """``value`` as JSON on one line: one of a stream."""
    click.echo(json.dumps(value, ensure_ascii=False))


def show_text(text: str, output: str, *, key: str) -> None:
    """A text that is no API object; as JSON it is the value of ``key``."""
    if output == "json":
        show_json({key: text})
    else:
        click.echo(text, nl=not text.endswith("\n"))


def show_list(
    items: Sequence[Json],
    output: str,
    *,
    headings: Sequence[str],
    row: Callable[[Json], Sequence[str]],
    name: str = "name",
    empty: str = "",
) -> None:
    """A list of API objects. ``empty`` is said on stderr if a table would have no rows."""
    if output == "json":
        show_json(items)
    elif output == "name":
        for item in items:
            click.echo(clean(str(item[name])))
    elif items:
        click.echo(table(headings, [row(item) for item in items]))
    else:
        click.echo(empty, err=True)


def show_one(
    item: Json, output: str, *, pairs: Callable[[Json], Sequence[tuple[str, object]]], name: str
) -> None:
    """One API object; ``name`` is what the name format prints."""
    if output == "json":
        show_json(item)
    elif output == "name":
        click.echo(clean(name))
    else:
        click.echo(fields(pairs(item)))
