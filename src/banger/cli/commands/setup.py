"""``banger setup``: fit banger into the user's account."""

from __future__ import annotations

import os
import pwd
import shlex
from pathlib import Path

import click

from banger.cli.lazy import Entry, LazyGroup
from banger.cli.output import data
from banger.cli.self_command import self_argv
from banger.cli.session import Session, pass_session
from banger.host.config import Config
from banger.model.errors import BangerError, InvalidInputError, RefusedError

RESOLVED_SETUP = (
    "sudo install -D -m 644 /dev/stdin /etc/systemd/resolved.conf.d/banger.conf"
    " && sudo systemctl restart systemd-resolved"
)

_HERE = "banger.cli.commands.setup"
COMMANDS = {
    "dns": Entry(f"{_HERE}:dns", "Show how NAME.banger is resolved on this host."),
    "helper": Entry(f"{_HERE}_helper:helper", "Install root's part of banger (as root)."),
    "ssh": Entry(f"{_HERE}:ssh", "Make plain ssh reach VMs as NAME.banger."),
    "storage": Entry(
        f"{_HERE}_storage:storage", "Make a file system that shares blocks (as root)."
    ),
}


@click.group(cls=LazyGroup, lazy=COMMANDS)
def setup() -> None:
    """Fit banger into this account or host."""


def _quoted(path: Path) -> str:
    return '"' + str(path).replace("%", "%%") + '"'


def ssh_config(config: Config) -> str:
    """What ssh reads for ``NAME.banger``. ``%n`` is the name as it was typed."""
    command = shlex.join([*self_argv(config), "vm", "proxy"]).replace("%", "%%")
    return (
        "# made by: banger setup ssh\n"
        "Host *.banger\n"
        "    User root\n"
        f"    IdentityFile {_quoted(config.ssh_key_path)}\n"
        "    IdentitiesOnly yes\n"
        f"    UserKnownHostsFile {_quoted(config.known_hosts_path)}\n"
        "    GlobalKnownHostsFile /dev/null\n"
        "    StrictHostKeyChecking yes\n"
        "    PreferredAuthentications publickey\n"
        f"    ProxyCommand {command} %n 22\n"
    )


def include_line(config: Config) -> str:
    """The line for the user's own configuration."""
    return f'Include "{config.ssh_config_path}"'


@click.command()
@click.option("--print", "only_print", is_flag=True, help="Only show what would be written.")
@click.option("--remove", is_flag=True, help="Take it back.")
@data.format_option
@pass_session
def ssh(session: Session, *, only_print: bool, remove: bool, output: str) -> None:
    """Make plain ssh, scp, rsync and editors reach VMs as NAME.banger.

    Writes a file of banger's own and includes it at the top of ~/.ssh/config.
    """
    config = session.config
    user_config = Path(os.path.expanduser("~/.ssh/config"))  # noqa: PTH111  $HOME, as ~ in a shell
    if only_print:
        head = f"# {user_config}\n{include_line(config)}\n\n# {config.ssh_config_path}\n"
        data.show_text(head + ssh_config(config), output, key="ssh_config")
        return
    _write(config, user_config, remove=remove)
    if remove:
        click.echo("ssh no longer knows NAME.banger", err=True)
        return
    click.echo("try: ssh NAME.banger", err=True)
    home = pwd.getpwuid(os.getuid()).pw_dir
    if user_config.parent.parent != Path(home):
        click.echo(f"warning: ssh reads {home}/.ssh/config, HOME is elsewhere", err=True)


def resolved_config(port: int) -> str:
    """What systemd-resolved reads to ask banger for names under ``.banger``, and for no others."""
    return f"# made by: banger setup dns\n[Resolve]\nDNS=127.0.0.1:{port}\nDomains=~banger\n"


@click.command()
@click.option("--print", "only_print", is_flag=True, help="Show what systemd-resolved must read.")
@data.format_option
@pass_session
def dns(session: Session, *, only_print: bool, output: str) -> None:
    """Show how NAME.banger is resolved on this host, for VMs that it reaches by address.

    The daemon answers on 127.0.0.1 at the configured dns_port. Only an administrator can make the host ask there, so banger writes nothing.
    """
    port = session.config.dns_port
    if port == 0:
        raise RefusedError(
            "the daemon serves no names: dns_port is 0",
            hint=f"put dns_port = 5354 into {session.config.path}, then: banger daemon stop",
        )
    if not only_print:
        raise InvalidInputError(
            "banger does not write into /etc",
            detail=f"an administrator does: banger setup dns --print | {RESOLVED_SETUP}",
            hint="banger setup dns --print",
        )
    data.show_text(resolved_config(port), output, key="resolved_config")


def _write(config: Config, user_config: Path, *, remove: bool) -> None:
    from banger.host import fs  # noqa: PLC0415  not for --print

    target = user_config.resolve()  # a link into a repository of dot files stays a link
    line = include_line(config)
    try:
        text = target.read_text() if target.exists() else ""
        kept = [present for present in text.splitlines() if present.strip() != line]
        if remove:
            config.ssh_config_path.unlink(missing_ok=True)
            changed = "\n".join(kept).lstrip("\n") + "\n" if kept else ""
        else:
            fs.make_private_dir(config.ssh_config_path.parent)
            fs.write_atomic(config.ssh_config_path, ssh_config(config).encode())
            changed = "\n".join([line, "", *kept]).rstrip("\n") + "\n" if line not in text else text
        if changed != text:
            if not target.parent.exists():
                fs.make_private_dir(target.parent)
            mode = target.stat().st_mode & 0o777 if target.exists() else 0o600
            fs.write_atomic(target, changed.encode(), mode=mode)
    except (OSError, UnicodeDecodeError) as error:
        raise BangerError(
            f"{target} could not be changed", detail=str(error), hint="banger setup ssh --print"
        ) from error
