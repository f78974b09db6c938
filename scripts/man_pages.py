"""Write the manual pages, made from the commands and the configuration's keys, below the directory that is given; ``make man``."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from cli_reference import STATUSES, THE_GUESTS

from banger import __version__
from banger.cli.app import cli
from banger.cli.lazy import LazyGroup
from banger.daemon.main import main as bangerd
from banger.helper.main import main as helper
from banger.host.config_help import explain

FILES = {
    "$BANGER_CONFIG, $XDG_CONFIG_HOME/banger/config.toml, /etc/banger/config.toml": "the configuration; the last one is root's",
    "$BANGER_STATE_DIR, $XDG_STATE_HOME/banger, /var/lib/banger": "images, VMs, the database and keys; the last one is root's",
    "$BANGER_RUNTIME_DIR, $XDG_RUNTIME_DIR/banger, /run/banger": "sockets; the last one is root's",
}
SETTINGS = """\
banger, bangerd and banger-helper read the file of the configuration, which need not exist, then the environment, which wins. The file is TOML:
a key, an equals sign and a value a line. An unknown key is an error that names the nearest one.

The daemon has its configuration from the command that started it; after a change: banger daemon stop.
"""


def text(words: str) -> str:
    """``words`` as roff reads them: no escapes, no requests, no Markdown."""
    words = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", words.replace("`", ""))
    words = words.replace("\\", r"\e").replace("-", r"\-").replace("…", "...")
    return re.sub(r"^([.'])", r"\\&\1", words, flags=re.MULTILINE)


def paragraphs(words: str) -> Iterator[str]:
    """Paragraphs of a help text; one that begins with a line of click's mark (a backspace) keeps its lines."""
    for block in filter(str.strip, re.split(r"\n\s*\n", words)):
        lines = [line.strip(" ") for line in block.splitlines()]
        if lines[0] == "\b":
            yield "\n".join([".PP", ".nf", *map(text, lines[1:]), ".fi"])
        else:
            yield ".PP\n" + text(" ".join(lines))


def item(head: str, words: str) -> str:
    """A term and what is said of it."""
    return f".TP\n.B {text(head)}\n{text(words)}".rstrip()


def page(name: str, section: int, summary: str, parts: dict[str, list[str]]) -> str:
    """A manual page of ``parts``, headings with their roff; empty ones are left out."""
    lines = [
        f'.TH "{text(name.upper())}" "{section}" "" "banger {__version__}" "banger"',
        ".SH NAME",
        rf"{text(name)} \- {text(summary)}",
    ]
    for title, content in parts.items():
        if content:
            lines += [f".SH {title}", *content]
    return "\n".join(lines) + "\n"


def options(command: click.Command, context: click.Context) -> list[str]:
    """Every option as its help has it."""
    found = [one for one in command.get_params(context) if isinstance(one, click.Option)]
    records = [option.get_help_record(context) for option in found]
    return [item(*record) for record in records if record is not None]


def below(command: click.Command, path: str) -> list[str]:
    """The commands of a group, from its table where importing them can be spared."""
    if isinstance(command, LazyGroup):
        found = {name: one.help for name, one in command.lazy.items() if not one.hidden}
    elif isinstance(command, click.Group):
        found = {name: one.get_short_help_str(200) for name, one in command.commands.items()}
    else:
        found = {}
    return [item(f"{path} {name}", words) for name, words in found.items()]


def see_also(*names: tuple[str, int]) -> list[str]:
    """References to other pages."""
    return [
        ",\n".join(rf".BR {text(name)} ({section})" for name, section in names).replace(
            ",\n", " ,\n"
        )
    ]


def of_command(command: click.Command, context: click.Context, section: int = 1) -> str:
    """The page of one command."""
    path = context.command_path
    name = path.replace(" ", "-")
    summary, _, rest = (command.help or "").partition("\n\n")
    usage = " ".join(command.collect_usage_pieces(context))
    parent = context.parent.command_path.replace(" ", "-") if context.parent else ""
    pages = [(parent, 1)] if parent else []
    pages += [("banger", 1)] if parent != "banger" and name != "banger" else []
    statuses = [item(str(status), meaning) for status, meaning in STATUSES.items()]
    return page(
        name,
        section,
        " ".join(summary.split()).rstrip("."),
        {
            "SYNOPSIS": [f".B {text(path)}\n{text(usage)}"],
            "DESCRIPTION": [".PP\n" + text(" ".join(summary.split())), *paragraphs(rest)],
            "OPTIONS": options(command, context),
            "COMMANDS": below(command, path),
            "EXIT STATUS": [*statuses, ".PP\n" + text(THE_GUESTS)] if name == "banger" else [],
            "FILES": [item(where, what) for where, what in FILES.items()] if not parent else [],
            "SEE ALSO": see_also(*pages, ("banger-config", 5), ("bangerd", 8)),
        },
    )


def configuration() -> str:
    """The page of the configuration's keys."""
    keys = [
        item(
            one.key,
            f"{one.meaning}. Value: {one.kind}. Default: {one.default}. Environment: {one.variable}.",
        )
        for one in explain()
    ]
    return page(
        "banger-config",
        5,
        "configuration of banger",
        {
            "DESCRIPTION": [".PP\n" + text(words) for words in SETTINGS.split("\n\n")],
            "KEYS": keys,
            "FILES": [item(where, what) for where, what in list(FILES.items())[:1]],
            "SEE ALSO": see_also(("banger", 1), ("banger-config", 1), ("bangerd", 8)),
        },
    )  # fmt: skip


def commands(command: click.Command, context: click.Context) -> Iterator[tuple[str, str]]:
    """File and text of the page of ``command`` and of all below it but aliases, which have no page of their own."""
    yield f"man1/{context.command_path.replace(' ', '-')}.1", of_command(command, context)
    if isinstance(command, click.Group):
        for name in command.list_commands(context):
            if isinstance(command, LazyGroup) and command.lazy[name].alias:
                continue
            found = command.get_command(context, name)
            if found is not None:
                yield from commands(found, click.Context(found, context, info_name=name))


def pages() -> dict[str, str]:
    """Every page by its path below the manual's directory."""
    found = dict(commands(cli, click.Context(cli, info_name="banger", **cli.context_settings)))
    for name, command in (("bangerd", bangerd), ("banger-helper", helper)):
        found[f"man8/{name}.8"] = of_command(command, click.Context(command, info_name=name), 8)
    found["man5/banger-config.5"] = configuration()
    return found


if __name__ == "__main__":
    root = Path(sys.argv[1])
    for place, words in pages().items():
        (root / place).parent.mkdir(parents=True, exist_ok=True)
        (root / place).write_text(words)
    sys.stdout.write(f"{len(pages())} pages in {root}\n")
