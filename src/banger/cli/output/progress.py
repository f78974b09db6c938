"""Stages of an operation as they happen, on stderr: one plain line each, or live on a terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Protocol

import click

from banger.cli.output.text import draws, stage_line
from banger.client import follow
from banger.model import clock

if TYPE_CHECKING:
    from banger.api.schema import Operation, Stage
    from banger.client.sdk import Client


class DetachedError(click.exceptions.Exit):
    """The user pressed Ctrl-C: the operation goes on without us."""


def line(stage: Stage) -> str:
    """`stage_line` of an operation's stage."""
    end = stage.detail if stage.state == "succeeded" else f"{stage.state}  {stage.detail}"
    return stage_line(stage.name, stage.duration_ms, end)


class _View(Protocol):
    def finished(self, stage: Stage) -> None: ...
    def running(self, stage: Stage | None) -> None: ...


class _Plain:
    """One line a finished stage."""

    def finished(self, stage: Stage) -> None:
        click.echo(line(stage), err=True)

    def running(self, stage: Stage | None) -> None:
        pass


@contextmanager
def _view() -> Iterator[_View]:
    if not draws():
        yield _Plain()
        return
    from banger.cli.output.live import Live  # noqa: PLC0415  rich is for terminals

    with Live() as live:
        yield live


def watch(
    client: Client, operation: Operation, *, detach_hint: str = "", timeout_s: float | None = None
) -> Operation:
    """Show ``operation`` until it is over; its final form. Raises its error if it failed.

    Ctrl-C detaches: says how to follow, and `DetachedError` ends the command with status 130.
    """
    with detachable(operation, detach_hint):
        final = _show(client, operation, timeout_s)
    return follow.outcome(final)


@contextmanager
def detachable(operation: Operation, hint: str = "") -> Iterator[None]:
    """Ctrl-C in this block leaves ``operation`` to the daemon."""
    try:
        yield
    except KeyboardInterrupt:
        click.echo(
            f"\ndetached: {operation.kind} of {operation.target_name} goes on\n\n"
            f"hint: banger op wait {operation.id}",
            err=True,
        )
        if hint:
            click.echo(f"hint: {hint}", err=True)
        raise DetachedError(130) from None


def _show(client: Client, operation: Operation, timeout_s: float | None) -> Operation:
    shown = 0
    with _view() as view:
        for operation in client.follow(operation, timeout_s=timeout_s):  # noqa: B020, PLR1704  each is a later form of the same
            stages = operation.stages
            while shown < len(stages) and stages[shown].state in follow.FINAL:
                view.finished(stages[shown])
                shown += 1
            view.running(stages[shown] if shown < len(stages) else None)
    return operation


def elapsed_ms(stage: Stage) -> float:
    """How long ``stage`` runs already, by the wall clock that it was started by."""
    now, then = clock.parse(clock.now()), clock.parse(stage.started_at)
    return max(0.0, (now - then).total_seconds() * 1000)
