"""Print the reference of the command line, as its own --help has it; ``make reference`` puts it into docs/reference/cli.md."""

import sys
from collections.abc import Iterator

import click

from banger.cli.app import cli

WIDTH = 100
STATUSES = {
    0: "done",
    1: "failed for another reason",
    2: "wrong input: option, name, size, configuration",
    3: "no such VM, image or operation",
    4: "refused: the state or somebody else's use does not allow it",
    5: "this host lacks something",
    6: "the guest was not ready in time",
    7: "the daemon cannot be reached",
    130: "interrupted",
}
THE_GUESTS = "`exec`, `ssh` and `run` end with the status of the command in the guest."
HEAD = """\
# Commands

Made by `make reference` from what `--help` prints. Data goes to stdout, messages to stderr.

| exit status | meaning |
|---|---|
"""


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """Path and help of ``command`` and all below it, in the order of the help."""
    yield context.command_path, command.get_help(context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                inner = click.Context(below, context, info_name=name, terminal_width=WIDTH)
                yield from commands(below, inner)


def reference() -> str:
    """The document."""
    top = click.Context(cli, info_name="banger", terminal_width=WIDTH, max_content_width=WIDTH)
    statuses = "".join(f"| {status} | {meaning} |\n" for status, meaning in STATUSES.items())
    return f"{HEAD}{statuses}\n{THE_GUESTS}\n" + "".join(
        f"\n## {path}\n\n```\n{text}\n```\n" for path, text in commands(cli, top)
    )


if __name__ == "__main__":
    sys.stdout.write(reference())
