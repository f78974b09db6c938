"""``vm ssh``: the user's own ssh, with the managed key and the VM's pinned host key."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import click

from banger.cli import forward_env, params, reminder
from banger.cli.forward_env import forwarded
from banger.cli.self_command import self_argv
from banger.cli.session import Session, pass_session
from banger.host import exec as host_exec
from banger.host.config import Config
from banger.model.errors import BangerError
from banger.model.state import VmState, not_running

if TYPE_CHECKING:
    from banger.api.schema import Vm

SSH_PORT = 22


def ssh_argv(
    config: Config, vm: Vm, command: Sequence[str], *, tty: bool, send: Iterable[str] = ()
) -> list[str]:
    """The command line of ssh: to the host's port that leads to the guest's 22, else through the agent's channel.

    ``send`` are names of variables that ssh passes on out of its own environment, so that no value is in a command line.
    """
    options = {
        "UserKnownHostsFile": _quoted(str(config.known_hosts_path)),
        "GlobalKnownHostsFile": "/dev/null",
        "HostKeyAlias": f"{vm.id}.banger",
        "StrictHostKeyChecking": "yes",
        "IdentitiesOnly": "yes",
        "PreferredAuthentications": "publickey",
        "ControlPath": "none",  # a master that is shared by port could lead to another VM
    }
    if names := " ".join(send):
        options["SendEnv"] = names
    port = next((f.host_port for f in vm.status.forwards if f.guest_port == SSH_PORT), None)
    if port is None:
        proxy = shlex.join([*self_argv(config), "vm", "proxy", vm.id, str(SSH_PORT)])
        options["ProxyCommand"] = proxy.replace("%", "%%")
    words = [
        host_exec.find_program("ssh", package="openssh-client"),
        "-i",
        str(config.ssh_key_path),
    ]
    for key, value in options.items():
        words += ["-o", f"{key}={value}"]
    if port is not None:
        words += ["-p", str(port)]
    if tty:
        words += ["-t"]
    words += ["-l", "root", "127.0.0.1" if port is not None else vm.id]
    return [*words, "--", *command] if command else words


def _quoted(path: str) -> str:
    """A path as a value of an ssh option: its blanks kept, its percent signs not taken for tokens."""
    return '"' + path.replace("%", "%%") + '"'


def check_runs(vm: Vm) -> None:
    """RefusedError for a VM that does not run."""
    if vm.state != "running":
        raise not_running(vm.name, VmState(vm.state))


@click.command()
@click.argument("name", type=params.VM)
@click.argument("command", nargs=-1)
@forward_env.option
@pass_session
def ssh(
    session: Session, *, name: str, command: Sequence[str], forward_env: tuple[str, ...]
) -> None:
    """Log in to a VM as root, or run COMMAND there; ssh's exit status.

    This is your own ssh with your own configuration. COMMAND goes to the guest's shell, as with ssh.
    """
    env = forwarded(session.config, forward_env)
    vm = session.client.vm(name)
    check_runs(vm)
    tty = not command and sys.stdin.isatty()
    argv = ssh_argv(session.config, vm, command, tty=tty, send=env)
    session.close()
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        if not reminder.wanted(session.config, command):
            host_exec.replace(argv, env=env)
        status = host_exec.run_interactive(argv, env=env)
    except OSError as error:
        raise BangerError(
            f"{argv[0]} could not be started",
            detail=str(error),
            hint="install it: apt-get install openssh-client",
        ) from error
    reminder.remind(session.config, vm, status)
    raise click.exceptions.Exit(status)
