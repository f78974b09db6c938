"""``banger bench``: how fast banger is here."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from banger.cli.bench import figures
from banger.cli.commands.vm_make import vm_options, wish
from banger.cli.lazy import Entry, LazyGroup
from banger.cli.output import data
from banger.cli.output.data import Json
from banger.cli.session import Session, pass_session
from banger.model.errors import InvalidInputError
from banger.model.units import format_duration

_TABLE: dict[str, Entry] = {
    "create": Entry("banger.cli.commands.bench:create", "Create, SSH, exec, delete.")
}


@click.group(cls=LazyGroup, lazy=_TABLE)
def bench() -> None:
    """Measure banger on this host."""


@click.command()
@click.option(
    "--runs", type=click.IntRange(1, 1000), default=5, show_default=True, help="How often."
)
@click.option("--image", help="Image to start from.  [default: debian]")
@click.option("--cold", is_flag=True, help="Drop the host's page cache before every run (root).")
@click.option("--save", type=click.Path(), help="Write the result, to compare later ones with.")
@click.option("--baseline", type=click.Path(), help="A saved result to compare with.")
@click.option("--json", "as_json", is_flag=True, help="The same as --format json.")
@vm_options
@data.format_option
@pass_session
def create(
    session: Session,
    /,
    *,
    runs: int,
    cold: bool,
    save: str | None,
    baseline: str | None,
    as_json: bool,
    output: str,
    **given: Any,  # noqa: ANN401  vm_options
) -> None:
    """Make VMs one after the other and say what each part took: until ready, its stages, the first SSH, the first exec, the deletion.

    Before the first run a VM that does not count comes and goes, so that the network is there in all of them.
    """
    from banger.cli.bench import create as life  # noqa: PLC0415  it needs the client

    usual = None if baseline is None else figures.medians(_read(baseline), baseline)
    request = wish(session, given)
    life.one_run(session, request, cold=False)
    done = []
    for number in range(1, runs + 1):
        done.append(life.one_run(session, request, cold=cold))
        click.echo(
            f"run {number} of {runs}: ready in {format_duration(done[-1]['create'])}", err=True
        )
    result = figures.report("create", done, life.facts(session, request, cold=cold))
    if save is not None:
        _write(save, result)
    if as_json or output == "json":
        data.show_json(result)
        return
    _show(result, figures.figures(done), usual, output)


def _show(
    result: Json, rows: list[figures.Figure], usual: dict[str, float] | None, output: str
) -> None:
    host = result["host"]
    click.echo(
        f"{host['cpu'] or host['machine']}, {host['cpus']} CPUs, Linux {host['kernel']}; {result['accel']}; {result['cache']}",
        err=True,
    )

    def row(item: Json) -> list[str]:
        each: figures.Figure = item["figure"]
        shown = [
            each.name,
            *(
                format_duration(value)
                for value in (each.median_ms, each.p95_ms, each.min_ms, each.max_ms)
            ),
        ]
        if usual is not None:
            known = usual.get(each.name)
            shown.append("-" if not known else f"{each.median_ms / known:.2f} x")
        return shown

    headings = ["WHAT", "MEDIAN", "P95", "MIN", "MAX", *([] if usual is None else ["BASELINE"])]
    data.show_list(
        [{"name": each.name.strip(), "figure": each} for each in rows],
        output,
        headings=headings,
        row=row,
    )


def _read(path: str) -> Any:  # noqa: ANN401  whatever JSON holds
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise InvalidInputError(
            f"cannot read the baseline {path}",
            detail=str(error),
            hint="banger bench create --save FILE",
        ) from error


def _write(path: str, result: Json) -> None:
    try:
        Path(path).write_text(json.dumps(result, indent=2) + "\n")
    except OSError as error:
        raise InvalidInputError(
            f"cannot write {path}",
            detail=str(error.strerror),
            hint="banger bench create --save FILE",
        ) from error
