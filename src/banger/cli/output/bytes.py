"""How far a transfer is, on stderr: one plain line a stage, and on a terminal a line that is drawn anew."""

from __future__ import annotations

import click

from banger.cli.output.text import clean, draws, stage_line
from banger.model import clock
from banger.model.units import format_size

_REDRAW_MS = 100.0
_CLEAR = "\r\x1b[K"


class ByteProgress:
    """Tells stages of work on bytes; satisfies what `banger.bundle` asks of a reporter."""

    def __init__(self) -> None:
        self._live = draws()
        self._began_ms = clock.monotonic_ms()
        self._drawn_ms = 0.0

    def advance(self, stage: str, done_bytes: int, total_bytes: int) -> None:
        """Draw the line anew, ten times a second at most."""
        now_ms = clock.monotonic_ms()
        if not self._live or now_ms - self._drawn_ms < _REDRAW_MS:
            return
        self._drawn_ms = now_ms
        percent = f"{100 * done_bytes // max(1, total_bytes)} %"
        end = f"{percent} of {format_size(total_bytes)}"
        click.echo(_CLEAR + stage_line(stage, now_ms - self._began_ms, end), err=True, nl=False)

    def done(self, stage: str, detail: str) -> None:
        """Print a stage for good."""
        now_ms = clock.monotonic_ms()
        self._print(stage_line(stage, now_ms - self._began_ms, detail))
        self._began_ms = now_ms

    def note(self, sentence: str) -> None:
        """Print a sentence."""
        self._print(clean(sentence))

    def clear(self) -> None:
        """Take the drawn line away, before something else is printed."""
        if self._live and self._drawn_ms:
            click.echo(_CLEAR, err=True, nl=False)
            self._drawn_ms = 0.0

    def _print(self, line: str) -> None:
        self.clear()
        click.echo(line, err=True)
