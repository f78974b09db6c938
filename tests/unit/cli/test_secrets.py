"""Secrets, and which of a user's values go into guests: never shown, never in a command line, never where others read."""

import json
import os
import stat
import sys

import pytest

from banger.api import schema
from banger.cli import forward_env
from banger.cli.commands.vm_ssh import ssh_argv
from banger.cli.secret_store import MAX_VALUE_BYTES, SecretStore
from banger.host.config import load_config
from banger.model.errors import InvalidInputError, NotFoundError
from tests.framework.fake_daemon import a_vm
from tests.framework.terminal import Terminal
from tests.unit.cli.test_commands import ARGV, Shell

VALUE = "sk-not-to-be-seen-1f2e"


@pytest.fixture
def shell(tmp_path):
    return Shell(tmp_path)


def config(tmp_path, **settings):
    environ = {
        "BANGER_STATE_DIR": str(tmp_path),
        "BANGER_RUNTIME_DIR": str(tmp_path),
        "HOME": str(tmp_path),
    }
    return load_config({**environ, **{f"BANGER_{k.upper()}": v for k, v in settings.items()}})


def test_a_secret_is_stored_for_its_owner_alone_listed_by_name_and_deleted(shell):
    done = shell.ok("secret", "set", "API_KEY", stdin=VALUE + "\n")
    assert VALUE not in done.stdout + done.stderr
    path = shell.home / "state" / "secrets" / "API_KEY"
    assert path.read_text() == VALUE
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
    listed = shell.ok("secret", "list", "--format", "json").stdout
    assert json.loads(listed) == [{"name": "API_KEY"}]
    assert VALUE not in shell.ok("secret", "list").stdout
    shell.ok("secret", "delete", "API_KEY")
    assert "no secrets" in shell.ok("secret", "list").stderr
    assert "banger secret list" in shell.fails(3, "secret", "delete", "API_KEY")


def test_a_value_that_is_typed_is_not_echoed(shell):
    with Terminal([*ARGV, "secret", "set", "API_KEY"], env=shell.env) as terminal:
        terminal.wait_for("value of API_KEY")
        terminal.type(VALUE + "\n")
        terminal.wait_for("stored")
        assert VALUE not in terminal.screen
    assert SecretStore(shell.home / "state" / "secrets").get("API_KEY") == VALUE


@pytest.mark.parametrize(
    "name", ["1A", "A B", "../../x", "", "A=B", "_A", "LANG", "LC_ALL", "A" * 200]
)
def test_a_name_that_no_variable_of_a_guest_can_have_is_refused(shell, name):
    shell.fails(2, "secret", "set", name, stdin=VALUE)
    assert not (shell.home / "state" / "secrets").exists()


@pytest.mark.parametrize("value", ["", "\n", "a\0b", "x" * (MAX_VALUE_BYTES + 1)])
def test_a_value_that_no_variable_can_have_is_refused_without_showing_it(shell, value):
    said = shell.fails(2, "secret", "set", "API_KEY", stdin=value)
    assert len(said) < 300


def test_a_value_is_the_given_one_else_the_callers_else_the_secret(tmp_path):
    store = SecretStore(config(tmp_path).secrets_dir)
    for name in ("A", "B", "C"):
        store.set(name, "stored")
    environ = {"B": "mine", "C": "mine"}
    found = forward_env.forwarded(config(tmp_path), ["A", "B", "C=given"], environ)
    assert found == {"A": "stored", "B": "mine", "C": "given"}


def test_what_is_asked_for_must_be_there_what_is_configured_need_not(tmp_path):
    configured = config(tmp_path, forward_env="A,B")
    assert forward_env.forwarded(configured, [], {"B": "mine", "OTHER": "not this"}) == {
        "B": "mine"
    }
    with pytest.raises(NotFoundError, match="no variable and no secret A") as caught:
        forward_env.forwarded(configured, ["A"], {})
    assert caught.value.hint.startswith("banger secret set A")
    with pytest.raises(InvalidInputError):
        forward_env.forwarded(configured, ["LANG"], {"LANG": "de_DE.UTF-8"})


def test_exec_passes_the_values_on_and_nothing_that_was_not_named(daemon, shell):
    shell.ok("secret", "set", "API_KEY", stdin=VALUE)
    env = {"OTHER": "mine", "BANGER_FORWARD_ENV": "THIRD", "THIRD": "3"}
    command = ["sh", "-c", 'echo "$API_KEY $OTHER $THIRD"']
    done = shell.ok("exec", "--forward-env", "API_KEY", "web", "--", *command, env=env)
    assert done.stdout == f"{VALUE}  3\n"
    shell.fails(3, "exec", "--forward-env", "NOBODYS", "web", "--", "true")


def test_ssh_gets_names_in_its_command_line_and_values_in_its_environment(daemon, shell, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "ssh").write_text('#!/bin/sh\necho "$@"\necho "value: $API_KEY"\n')
    (programs / "ssh").chmod(0o755)
    shell.ok("secret", "set", "API_KEY", stdin=VALUE)
    env = {"PATH": f"{programs}:{os.environ['PATH']}"}
    argv, value = shell.ok(
        "ssh", "--forward-env", "API_KEY", "web", "--", "true", env=env
    ).stdout.splitlines()
    assert "SendEnv=API_KEY" in argv
    assert VALUE not in argv
    assert value == f"value: {VALUE}"


def test_without_names_ssh_is_told_to_send_nothing(tmp_path):
    argv = ssh_argv(config(tmp_path), a_vm("web"), ["true"], tty=False)
    assert not any("SendEnv" in word for word in argv)


@pytest.fixture
def with_opencode(daemon):
    vm = daemon.vms[0]
    vm.status.services.append(schema.ServiceStatus("opencode", 4096, ready=True))
    daemon.health.services.append(schema.ServiceStatus("opencode", 4096, ready=True))
    return daemon


def test_opencode_prints_the_url_of_a_forward_that_stays(with_opencode, shell):
    url = shell.ok("vm", "opencode", "web").stdout.strip()
    ports = json.loads(shell.ok("vm", "forward", "web", "--format", "json").stdout)
    (port,) = [f["host_port"] for f in ports if f["guest_port"] == 4096]
    assert url == f"http://127.0.0.1:{port}"
    again = json.loads(shell.ok("vm", "opencode", "web", "--url", "--format", "json").stdout)
    assert again == {"url": url}


def test_on_a_terminal_the_hosts_own_opencode_is_attached(with_opencode, shell, tmp_path):
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "opencode").write_text('#!/bin/sh\necho "attached: $@"\n')
    (programs / "opencode").chmod(0o755)
    env = {**shell.env, "PATH": f"{programs}:{os.environ['PATH']}"}
    with Terminal(
        [sys.executable, "-m", "banger.cli.main", "vm", "opencode", "web"], env=env
    ) as one:
        one.wait_for("attached: attach http://127.0.0.1:")
    url = shell.ok("vm", "opencode", "web", env=env).stdout  # no terminal: nobody to attach
    assert url.startswith("http://127.0.0.1:")


def test_opencode_of_an_image_without_it_and_of_one_that_does_not_answer(daemon, shell):
    assert "declares no such service" in shell.fails(3, "vm", "opencode", "web")
    daemon.vms[0].status.services.append(schema.ServiceStatus("opencode", 4096, ready=False))
    said = shell.fails(6, "vm", "opencode", "web", "--timeout", "2")
    assert "waiting for opencode" in said
    assert "journalctl -u opencode" in said
    daemon.vms.append(a_vm("off", "stopped"))
    shell.fails(4, "vm", "opencode", "off")
