"""``--trace FILE`` of commands that wait for operations: the trace that ``op show --trace`` writes, as soon as they are over."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from banger.api import routes
from banger.cli.output import progress, timeline
from banger.cli.session import Session
from banger.model.compat import override
from banger.model.errors import BangerError, InvalidInputError


class TraceFile(click.Path):
    """A file that can be written: checked before anything is done whose trace would be lost."""

    name = "file"

    @override
    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:  # `dir_okay` and `writable` speak of files that exist
        """The path; InvalidInputError."""
        path = Path(value)
        target = path if path.exists() else path.parent
        if path.is_dir() or not target.exists() or not os.access(target, os.W_OK):
            raise InvalidInputError(
                f"cannot write the trace {path}",
                detail="it is a directory, lies in none, or is not yours to write",
                hint="--trace /tmp/trace.json",
            )
        return str(path)


option = click.option(
    "--trace", type=TraceFile(), help="Write when each stage ran, for Perfetto or Chrome."
)


def check(trace: str | None, *, waits: bool) -> None:
    """UsageError for a trace of what is not waited for."""
    if trace is not None and not waits:
        raise click.UsageError("--trace does not go with --no-wait or --dry-run")


@contextmanager
def of(session: Session, trace: str | None, operation: str) -> Iterator[None]:
    """Write the trace of the operation with this id when the block ends, by its failure too; not if the user has left it."""
    try:
        yield
    except progress.DetachedError:
        if trace is not None:
            click.echo(f"hint: banger op show {operation} --trace {trace}", err=True)
        raise
    except BangerError:
        write(session, trace, [operation])
        raise
    write(session, trace, [operation])


def write(session: Session, trace: str | None, operations: Iterable[str]) -> None:
    """Write the operations with these ids, however they ended, to ``trace`` if there is one; InvalidInputError."""
    if trace is None:
        return
    items = [session.transport.fetch(routes.OPERATION_SHOW, {"id": one}) for one in operations]
    if not items:
        return
    try:
        Path(trace).write_text(timeline.trace(items))
    except OSError as error:
        raise InvalidInputError(
            f"cannot write the trace {trace}",
            detail=str(error.strerror),
            hint=f"banger op show {items[0]['id']} --trace FILE",
        ) from error
