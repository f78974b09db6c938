"""The commands in documents: which lines of which blocks they are, and the words of each program that a line starts."""

import re
import shlex
import subprocess
from dataclasses import dataclass
from pathlib import Path

import click

from banger.cli.app import cli

ROOT = Path(__file__).parents[2]
CONTROL = set("();<>|&")
GUEST_PROMPT = re.compile(r"root@\w+:[^#]*# ")
"""After it stands what is typed into a guest's shell."""


def documents():
    """Every Markdown file that tells readers what to type: the history of changes and decisions does not."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard", "*.md"], cwd=ROOT, capture_output=True, text=True, check=True
    )  # fmt: skip
    return [
        name
        for name in sorted(filter(None, listed.stdout.split("\0")))
        if name != "CHANGELOG.md" and not name.startswith("docs/adr/") and (ROOT / name).is_file()
    ]


@dataclass(frozen=True)
class Command:
    """A command line of a document, with what the document says that it prints, and what is typed in the guest meanwhile."""

    document: str
    line: int
    text: str
    output: tuple[str, ...] = ()
    typed: tuple[str, ...] = ()

    def __str__(self):
        return f"{self.document}:{self.line}: {self.text}"


def blocks(name):
    """Each block of code, fenced or indented, as (line number, line) pairs without its indentation."""
    found, fence, before = [], None, ""
    for number, line in enumerate((ROOT / name).read_text().splitlines(), 1):
        if line.lstrip().startswith("```"):
            fence = None if fence is not None else []
            found += [fence] if fence is not None else []
        elif fence is not None:
            fence.append((number, line))
        elif re.match(r" {4}", line) and (not before.strip() or re.match(r" {4}", before)):
            if not re.match(r" {4}", before):
                found.append([])
            found[-1].append((number, line.strip()))
        before = line
    return found


def commands(name):
    """The command lines in ``name``'s blocks: after ``$``, or where a block has no ``$`` those that begin with banger."""
    found = []
    for block in blocks(name):
        prompted = any(line.startswith("$ ") for _, line in block)
        for number, line in block:
            typed = GUEST_PROMPT.match(line)
            if line.startswith("$ "):
                found.append(Command(name, number, line[2:]))
            elif not prompted and re.match(r"(sudo )?banger [a-z]", line):
                found.append(Command(name, number, line))
            elif prompted and found and typed:
                last = found.pop()
                found.append(Command(name, last.line, last.text, last.output, (*last.typed, line)))
            elif prompted and found and found[-1].line >= block[0][0]:
                last = found.pop()
                found.append(Command(name, last.line, last.text, (*last.output, line), last.typed))
    return found


def inline(name):
    """The command lines of banger in running text."""
    text = (ROOT / name).read_text()
    for code in re.finditer(r"(?<!`)`((?:sudo )?banger [^`\n]+)`(?!`)", text):
        yield Command(name, text.count("\n", 0, code.start()) + 1, code[1])


def programs(text):
    """The words of each program that a shell would start for ``text``; redirections are left out."""
    text = re.sub(r"\b\d>", ">", text)
    lexer = shlex.shlex(text, posix=True, punctuation_chars="".join(sorted(CONTROL)))
    lexer.whitespace_split = True
    found, skip = [[]], False
    for token in lexer:
        if set(token) <= CONTROL:
            skip = "<" in token or ">" in token
            if not skip:
                found.append([])
        elif skip:
            skip = False
        else:
            found[-1].append(token)
    for words in found:
        at = 0
        while at < len(words) and re.fullmatch(r"sudo|[A-Z_]+=.*", words[at]):
            at += 1
        if at < len(words):
            yield words[at:]


def of_banger(text):
    """The arguments of each banger that ``text`` starts, here or, over ssh, on another host."""
    for words in programs(text):
        there = words[0] == "ssh" and "banger" in words
        at = words.index("banger") if there else 0
        if Path(words[at]).name == "banger":
            yield words[at + 1 :]


def parse(arguments):
    """Let click read ``arguments`` as banger would, to the last command's last value; click.UsageError, BangerError."""
    command, context = cli, cli.make_context("banger", list(arguments))
    while isinstance(command, click.Group):
        known = vars(context)  # the attribute was renamed
        rest = [*(known.get("_protected_args") or known.get("protected_args", [])), *context.args]
        name, command, rest = command.resolve_command(context, rest)
        context = command.make_context(name, rest, parent=context)
