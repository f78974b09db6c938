"""Groups whose commands are imported when they are called, not when they are listed."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import click

from banger.model.compat import override


class Entry(NamedTuple):
    """Where a command is (``module:attribute``) and its line in the group's help."""

    where: str
    help: str
    alias: bool = False
    hidden: bool = False


class LazyGroup(click.Group):
    """A group over a table of `Entry`; an unknown command names the nearest one."""

    def __init__(self, *args: Any, lazy: Mapping[str, Entry], **kwargs: Any) -> None:  # noqa: ANN401  click's own
        super().__init__(*args, **kwargs)
        self.lazy = lazy

    @override
    def list_commands(self, ctx: click.Context) -> list[str]:
        """The commands in the table's order."""
        return [name for name, entry in self.lazy.items() if not entry.hidden]

    @override
    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import a command."""
        entry = self.lazy.get(cmd_name)
        if entry is None:
            return None
        module, _, attribute = entry.where.partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command)  # noqa: S101  a wrong table
        return command

    @override
    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; UsageError with the nearest name."""
        if args and args[0] not in self.lazy and not args[0].startswith("-"):
            raise click.UsageError(self._unknown(args[0]), ctx)
        return super().resolve_command(ctx, args)

    def _unknown(self, name: str) -> str:
        import difflib  # noqa: PLC0415  only on this way to an error

        near = difflib.get_close_matches(name, self.list_commands(click.Context(self)), n=1)
        shown = name if len(name) <= 40 else name[:37] + "..."
        return f"no command {shown!r}" + (f"; did you mean {near[0]!r}?" if near else "")

    @override
    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The table's own lines, without importing anything; aliases under a heading of their own."""
        for title, wanted in (("Commands", False), ("Aliases", True)):
            rows = [
                (name, entry.help)
                for name, entry in self.lazy.items()
                if entry.alias is wanted and not entry.hidden
            ]
            if rows:
                with formatter.section(title):
                    formatter.write_dl(rows)


def walk(command: click.Command, path: Sequence[str]) -> list[tuple[Sequence[str], click.Command]]:
    """``command`` and all below it, aliases and hidden ones left out, for the reference."""
    found: list[tuple[Sequence[str], click.Command]] = [(path, command)]
    if isinstance(command, LazyGroup):
        context = click.Context(command, info_name=path[-1])
        for name, entry in command.lazy.items():
            below = command.get_command(context, name)
            if below is not None and not entry.alias and not entry.hidden:
                found += walk(below, [*path, name])
    return found
