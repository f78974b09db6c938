"""``banger daemon logs -f``: what a daemon writes, also one that begins its log anew."""

import json
import signal
import subprocess

import pytest

from tests.unit.cli.test_commands import ARGV, Shell


@pytest.fixture
def shell(tmp_path):
    (tmp_path / "state").mkdir()
    return Shell(tmp_path)


@pytest.fixture
def log(shell):
    return shell.home / "state" / "bangerd.log"


@pytest.fixture
def following(shell):
    """Follows the log; reads a line at a time."""
    with subprocess.Popen(
        [*ARGV, "daemon", "logs", "-f"], env=shell.env, stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as process:  # fmt: skip
        yield process
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 130


def line(message, **ids):
    return json.dumps({"time": "2026-01-01T00:00:00.000Z", "level": "info", "logger": "x", "message": message, **ids}) + "\n"  # fmt: skip


def test_a_line_shows_the_vm_and_the_operation_that_it_belongs_to(shell, log):
    log.write_text(line("hello", vm="a" * 12, operation="b" * 12))
    printed = shell.ok("daemon", "logs").stdout
    assert "a" * 12 in printed
    assert "b" * 12 in printed


@pytest.mark.parametrize("there_already", [True, False])
def test_what_is_appended_is_followed_from_a_log_begun_anew_too(log, there_already, shell, request):
    if there_already:
        log.write_text(line("first"))
    process = request.getfixturevalue("following")
    if not there_already:
        assert process.stderr.readline().startswith("no log yet")
        log.write_text(line("first"))
    assert "first" in process.stdout.readline()
    with log.open("a") as file:
        file.write(line("second")[:30])
        file.flush()
        file.write(line("second")[30:])
    assert "second" in process.stdout.readline()
    log.rename(log.with_suffix(".log.1"))
    log.write_text(line("third"))
    assert "third" in process.stdout.readline()
