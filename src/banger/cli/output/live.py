"""The live form of a stage on a terminal: a spinner and the time so far. The only module that imports rich."""

from __future__ import annotations

from types import TracebackType
from typing import TYPE_CHECKING, Self

import rich.live
from rich.console import Console
from rich.spinner import Spinner
from rich.text import Text

from banger.cli.output import progress
from banger.cli.output.text import clean
from banger.model.units import format_duration

if TYPE_CHECKING:
    from rich.console import RenderableType

    from banger.api.schema import Stage

REFRESH_HZ = 8


class Live:
    """Finished stages scroll by, the running one stays on the last line until the block ends."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False, soft_wrap=True)
        self._stage: Stage | None = None
        self._spinner = Spinner("dots", style="cyan")
        self._live = rich.live.Live(
            get_renderable=self._render,
            console=self._console,
            refresh_per_second=REFRESH_HZ,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stage = None
        self._live.stop()

    def finished(self, stage: Stage) -> None:
        """Print a stage for good."""
        style = "green" if stage.state == "succeeded" else "red"
        text = Text(progress.line(stage))
        text.stylize(style, 0, len(stage.name))
        self._console.print(text)

    def running(self, stage: Stage | None) -> None:
        """Show this stage on the last line."""
        self._stage = stage
        self._live.refresh()

    def _render(self) -> RenderableType:
        stage = self._stage
        if stage is None:
            return Text("")
        took = format_duration(progress.elapsed_ms(stage) // 100 * 100)
        self._spinner.text = Text(clean(f"{stage.name} {took}  {stage.detail}").rstrip())
        return self._spinner
