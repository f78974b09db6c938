"""``banger vm exec``, with a terminal and without: keys, window size, signals, and the terminal as it was before."""

import os
import signal
import subprocess
import sys
import termios

import pytest

from tests.framework.terminal import Terminal

ARGV = [sys.executable, "-m", "banger.cli.main", "vm", "exec"]


@pytest.fixture
def env(tmp_path):
    return {
        **{k: v for k, v in os.environ.items() if not k.startswith(("BANGER_", "XDG_"))},
        "BANGER_CONFIG": str(tmp_path / "none"),
        "BANGER_STATE_DIR": str(tmp_path / "state"),
        "BANGER_RUNTIME_DIR": str(tmp_path),
        "BANGER_NO_AUTOSTART": "1",
        "TERM": "vt220",
    }


def terminal(env, script, **size):
    return Terminal([*ARGV, "-t", "web", "--", "sh", "-c", script], env=env, **size)


def test_every_key_reaches_the_command_and_the_terminal_is_put_back(daemon, env):
    script = "trap 'echo got-int' INT; echo up; while :; do read -r line || continue; echo \"[$line]\"; [ $line = end ] && exit 7; done"
    with terminal(env, script) as screen:
        screen.wait_for("up")
        assert not screen.now()[3] & (termios.ICANON | termios.ECHO | termios.ISIG)
        screen.type("hello\r")
        screen.wait_for("[hello]")
        screen.type("\x03")  # Ctrl-C is the guest's to see: its terminal makes a signal of it
        screen.wait_for("got-int")
        screen.type("end\r")
        assert screen.process.wait(20) == 7
        assert screen.now() == screen.modes


def test_what_is_typed_ahead_is_not_lost(daemon, env):
    with terminal(env, "read -r line; echo [$line]") as screen:
        screen.type("early\r")
        screen.wait_for("[early]")
        assert screen.process.wait(20) == 0


def test_the_command_has_the_terminals_size_and_follows_it(daemon, env):
    script = "trap 'stty size' WINCH; echo $TERM; stty size; while :; do sleep 0.1; done"
    with terminal(env, script, rows=30, cols=100) as screen:
        screen.wait_for("vt220")
        screen.wait_for("30 100")
        screen.resize(41, 133)
        screen.wait_for("41 133")
        screen.process.send_signal(signal.SIGTERM)
        assert screen.process.wait(20) == 128 + signal.SIGTERM
        assert screen.now() == screen.modes


def test_without_a_terminal_on_stdin_t_is_refused(daemon, env):
    done = subprocess.run(
        [*ARGV, "-t", "web", "--", "true"], env=env, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert "-t needs a terminal" in done.stderr


@pytest.mark.parametrize("signo", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_without_a_terminal_signals_go_to_the_command(daemon, env, signo):
    name = signo.name.removeprefix("SIG")
    script = f"trap 'echo got {name}; exit 9' {name}; echo up; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        [*ARGV, "web", "--", "sh", "-c", script], env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    with process:
        assert process.stdout.readline() == "up\n"
        process.send_signal(signo)
        assert process.stdout.readline() == f"got {name}\n"
        assert process.wait(20) == 9
