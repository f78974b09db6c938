"""After a session in a VM a person reads that it still runs; programs, and whoever switched it off, read nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from tests.framework.fake_daemon import a_vm
from tests.framework.terminal import Terminal
from tests.unit.cli.test_commands import Shell

BANGER = [sys.executable, "-m", "banger.cli.main"]
SAID = "VM web is still running (up 12.5 s); stop it: banger vm stop web"


@pytest.fixture
def session(tmp_path):
    """Runs ``banger ARGV`` on a terminal, with a program in ssh's place; its status and what was on the screen."""
    programs = tmp_path / "bin"
    programs.mkdir()

    def run(*argv, ssh="exit 0", **settings):
        (programs / "ssh").write_text(f"#!/bin/sh\n{ssh}\n")
        (programs / "ssh").chmod(0o755)
        env = {**Shell(tmp_path).env, **settings, "PATH": f"{programs}:{os.environ['PATH']}"}
        with Terminal([*BANGER, *argv], env=env) as screen:
            status = screen.process.wait(60)
            return status, screen.whole().replace("\r\n", "\n")

    return run


@pytest.mark.parametrize("command", [["ssh"], ["vm", "ssh"]])
def test_after_a_session_the_vm_is_said_to_run_and_the_status_is_the_sessions(
    daemon, session, command
):
    status, screen = session(*command, "web", ssh="echo in; exit 7")
    assert (status, screen) == (7, f"in\n{SAID}\n")


def test_run_reminds_as_well_of_a_vm_that_it_does_not_delete(daemon, session):
    status, screen = session("run", "--name", "own")
    assert status == 0
    assert screen.endswith(SAID.replace("web", "own") + "\n")
    assert "still running" not in session("run", "--rm")[1]


def test_a_command_and_a_reminder_that_is_switched_off_say_nothing(daemon, session):
    assert session("ssh", "web", "--", "true") == (0, "")
    assert session("ssh", "web", BANGER_SSH_REMINDER="false") == (0, "")


def test_without_a_terminal_on_stderr_nothing_is_said(daemon, session, tmp_path):
    session("ssh", "web")  # makes the program
    env = {**Shell(tmp_path).env, "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = subprocess.run([*BANGER, "ssh", "web"], env=env, capture_output=True, text=True, timeout=30, check=False, stdin=subprocess.DEVNULL)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_nothing_is_said_of_a_vm_that_is_gone_stopped_or_on_its_way_down(daemon, session, tmp_path):
    assert session("ssh", "web", ssh="exit 255") == (255, "")
    daemon.vms[0].state = "stopping"
    daemon.vms.append(a_vm("other"))
    stop = " ".join([*BANGER, "vm", "stop", "other", "2>", "/dev/null", ";", "exit", "3"])
    assert session("ssh", "other", ssh=stop) == (3, "")
    daemon.vms[0].state = "running"
    delete = " ".join([*BANGER, "rm", "web", "2>", "/dev/null"])
    assert session("ssh", "web", ssh=delete) == (0, "")
    assert [vm.name for vm in daemon.vms] == ["other"]


def test_a_guest_that_does_not_answer_holds_the_prompt_up_for_two_seconds_at_most(daemon, session):
    short = SAID.replace(" (up 12.5 s)", "") + "\n"
    daemon.health.reachable = False
    assert session("ssh", "web") == (0, short)
    daemon.hold.add("health")
    began = time.monotonic()
    assert session("ssh", "web") == (0, short)
    assert 1.5 < time.monotonic() - began < 18  # the daemon is silent for longer


def test_a_session_that_stops_itself_is_left_to_the_shell_and_goes_on(daemon, tmp_path):
    code = "from banger.host.exec import run_interactive as run; raise SystemExit(run(['sh', '-c', 'kill -STOP $$; exit 5']))"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
        process.send_signal(signal.SIGCONT)
        assert process.wait(20) == 5


def test_a_session_is_told_of_signals_that_its_parent_gets(tmp_path):
    code = """
from banger.host.exec import run_interactive as run
raise SystemExit(run(["sh", "-c", "trap 'exit 6' TERM; echo up; while :; do sleep 0.05; done"]))
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout.readline() == b"up\n"
        process.terminate()
        assert process.wait(20) == 6


def test_a_signal_that_comes_while_a_session_is_started_reaches_it_too(tmp_path):
    code = """
import os, subprocess
from banger.host.exec import run_interactive as run

class Slow(subprocess.Popen):
    def __init__(self, *words, **options):
        super().__init__(*words, **options)
        os.kill(os.getpid(), 15)

subprocess.Popen = Slow
raise SystemExit(run(["sleep", "60"]))
"""
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 143
