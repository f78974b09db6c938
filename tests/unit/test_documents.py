"""What documents tell readers to type can be typed: every command of banger in them is one, to its last option."""

import contextlib
import re
import subprocess

import click
import pytest

from tests.framework.documents import ROOT, commands, documents, inline, of_banger, parse, programs
from tests.framework.reader import alike
from tests.framework.reading_list import READ, UNREAD

PLACEHOLDERS = {"NAME": "name", "ID": "554cbf5f66ca", "N": "1", "MODE": "user", "FILE": "file", "HOST": "host", "COMMAND": "vm"}  # fmt: skip
"""What stands for a reader's own word, and an example of it."""
UNFINISHED = (click.MissingParameter, click.BadOptionUsage, click.exceptions.NoArgsIsHelpError)
"""What running text may leave out: it names a command, as in "`banger vm cp` writes nothing outside"."""


def read(arguments):
    """`parse`, with placeholders replaced; ``--help`` and ``--version`` end it."""
    words = [
        re.sub(r"\b[A-Z]+\b", lambda m: PLACEHOLDERS.get(m[0], m[0]), word) for word in arguments
    ]
    with contextlib.suppress(click.exceptions.Exit):
        parse(words)


def cases(found):
    return [pytest.param(one, id=str(one)) for name in documents() for one in found(name)]


@pytest.mark.parametrize("command", cases(commands))
def test_a_command_in_a_block_is_one_that_banger_takes(command):
    for arguments in of_banger(command.text):
        read(arguments)


@pytest.mark.parametrize("command", cases(inline))
def test_a_command_in_running_text_is_one_as_far_as_it_goes(command):
    for arguments in of_banger(command.text):
        with contextlib.suppress(*UNFINISHED):
            read(arguments)


@pytest.mark.parametrize("name", documents())
def test_a_shell_can_read_every_line_that_is_to_be_typed(name):
    lines = "\n".join(command.text for command in commands(name))
    done = subprocess.run(["bash", "-n"], input=lines, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "wrong",
    [
        "vm crate",
        "vm create --colour red",
        "vm create --vcpus none",
        "vm stop",
        "vm ls x",
        "rm --al",
    ],
)
def test_a_command_that_does_not_exist_is_noticed(wrong):
    """These tests can fail."""
    with pytest.raises(click.UsageError):
        read(next(of_banger(f"sudo banger {wrong}")))


def test_words_are_taken_from_lines_as_a_shell_does():
    line = (
        "A=1 sudo .venv/bin/banger ls > x 2>&1 && ssh host banger ps | banger rm 'a b'  # banger no"
    )
    assert list(of_banger(line)) == [["ls"], ["ps"], ["rm", "a b"]]
    assert [words[0] for words in programs("make demo; cd x")] == ["make", "cd"]


def test_enough_is_found_to_speak_of():
    """A change of how documents write blocks would be a test of nothing."""
    assert len(documents()) > 30
    assert sum(len(commands(name)) for name in documents()) > 150


def test_output_is_compared_but_for_what_differs_from_host_to_host():
    assert alike(("disks   …   12 ms  reflink", "box is stopped (7 s)"), "disks … 1.2 s  copy\nbox is stopped (1 min 3 s)\n")  # fmt: skip
    assert alike(("a ... d",), "a b c d")
    assert alike(("a  ...",), "a")
    assert not alike(("b", "a"), "a\nb")
    assert not alike(("box is gone",), "box is stopped")


def test_every_document_with_commands_is_read_on_a_guest_or_there_is_a_reason():
    with_commands = {name for name in documents() if commands(name)} - {"docs/reference/cli.md"}
    assert set(READ) | set(UNREAD) == with_commands
    assert not set(READ) & set(UNREAD)


@pytest.mark.parametrize(
    ("name", "pattern"), [(name, pattern) for name, left_out in READ.items() for pattern in left_out]
)  # fmt: skip
def test_what_is_left_out_of_a_document_is_in_it(name, pattern):
    assert any(re.search(pattern, command.text) for command in commands(name))


@pytest.mark.parametrize("reason", [*UNREAD.values(), *(r for rows in READ.values() for r in rows.values())])  # fmt: skip
def test_a_reason_that_names_a_test_names_one_that_exists(reason):
    for path in re.findall(r"tests/[\w/.]+\w", reason):
        assert (ROOT / path).exists(), path
