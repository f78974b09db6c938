"""``banger daemon``: the process that owns the VMs."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from pathlib import Path
from typing import BinaryIO

import click

from banger.api import routes
from banger.cli.output import data
from banger.cli.output.data import Json
from banger.cli.session import Session, pass_session, warn_of_version
from banger.host.config import Config
from banger.host.locks import FileLock
from banger.model.errors import BangerError, DaemonUnreachableError, RefusedError

STOP_S = 60.0
POLL_S = 0.2


@click.group()
def daemon() -> None:
    """The daemon that owns the VMs. Other commands start it when they need it; VMs outlive it."""


def _pairs(info: Json) -> list[tuple[str, object]]:
    return [
        ("version", info["version"]),
        ("pid", info["pid"]),
        ("started", info["started_at"]),
        ("VMs", info["vms"]),
        ("acceleration", info["accel"]),
        ("network", f"{info['network']} {info['network_detail']}".strip()),
        ("state", info["state_dir"]),
        ("runtime", info["runtime_dir"]),
    ]


def _running(config: Config) -> Json | None:
    from banger.client.autostart import connect_if_running  # noqa: PLC0415  as all of banger.client here

    transport = connect_if_running(config)
    if transport is None:
        return None
    info: Json = transport.fetch(routes.INFO)
    return info


def _print(info: Json, output: str) -> None:
    data.show_one(info, output, pairs=_pairs, name=str(info["pid"]))
    for warning in info["warnings"]:
        click.echo(f"warning: {warning}", err=True)
    warn_of_version(info["version"])


@daemon.command()
@data.format_option
@pass_session
def start(session: Session, *, output: str) -> None:
    """Start the daemon if it does not run."""
    info = session.transport.fetch(routes.INFO)
    session.transport.warnings.clear()  # they are in the info too
    _print(info, output)


@daemon.command()
@data.format_option
@pass_session
def status(session: Session, *, output: str) -> None:
    """Show the daemon; exit status 7 if it does not run."""
    info = _running(session.config)
    if info is None:
        raise DaemonUnreachableError("the daemon is not running", hint="banger daemon start")
    _print(info, output)


@daemon.command()
@pass_session
def stop(session: Session) -> None:
    """Stop the daemon. VMs run on, and the next daemon takes them over."""
    info = _running(session.config)
    if info is None:
        click.echo("the daemon is not running", err=True)
        return
    descriptor = _pidfd(session.config, int(info["pid"]))
    if descriptor is not None:
        try:
            signal.pidfd_send_signal(descriptor, signal.SIGTERM)
            if not _gone(descriptor, STOP_S):
                raise BangerError(
                    f"the daemon (pid {info['pid']}) did not end within {STOP_S:g} s",
                    hint="banger daemon logs",
                )
        except ProcessLookupError:
            pass
        except PermissionError as error:
            raise BangerError(
                f"the daemon (pid {info['pid']}) is not yours to stop",
                hint=f"sudo kill {info['pid']}",
            ) from error
        finally:
            os.close(descriptor)
    count = info["vms"]
    rest = f"; {count} VM{'s' if count != 1 else ''} kept" if count else ""
    click.echo(f"the daemon is stopped{rest}", err=True)


def _pidfd(config: Config, pid: int) -> int | None:
    """A descriptor of the daemon's process: asked for twice, so that a recycled pid is never taken for it; and a daemon that has
    not the lock of this state directory is another host's, behind a socket that ssh forwards.
    """
    if FileLock(config.daemon_lock_path).holder() != str(pid):
        raise RefusedError(
            f"the daemon (pid {pid}) is not of this host, or has another state directory",
            detail=f"{config.daemon_lock_path} is not its lock",
            hint="stop it where it runs: ssh HOST banger daemon stop",
        )
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return None
    again = _running(config)
    if again is None or again["pid"] != pid:
        os.close(descriptor)
        return None
    return descriptor


def _gone(descriptor: int, timeout_s: float) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(timeout_s * 1000))


@daemon.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what is appended, until Ctrl-C.")
@click.option("-n", "--lines", type=click.IntRange(min=0), default=100, show_default=True)
@click.option("--raw", is_flag=True, help="The JSON lines as they are: --format json.")
@data.format_option
@pass_session
def logs(session: Session, *, follow: bool, lines: int, raw: bool, output: str) -> None:
    """Print the log of a daemon that a command started (a systemd service has its log in the journal)."""
    raw = raw or output == "json"
    path = session.config.daemon_log_path
    if path.exists():
        with path.open("rb") as file:
            for line in file.read().splitlines()[-lines:] if lines else []:
                _show(line, raw=raw)
            at = file.tell()
    else:
        click.echo(f"no log yet: {path}", err=True)
        at = 0
    if follow:
        sys.stdout.flush()
        _follow(path, at, raw=raw)


def _show(line: bytes, *, raw: bool) -> None:
    from banger.client.autostart import readable  # noqa: PLC0415  see above

    text = line.decode(errors="replace")
    click.echo(text if raw else readable(text))


def _follow(path: Path, at: int, *, raw: bool) -> None:
    """Print what is appended after ``at`` until Ctrl-C. A log that a later daemon begins anew (the old one is renamed when it
    has grown large) is read from its start.
    """
    try:
        while not path.exists():
            time.sleep(POLL_S)
        file = path.open("rb")
        file.seek(at)
        while True:
            _print_new(file, raw=raw)
            if path.exists() and not os.path.samestat(path.stat(), os.fstat(file.fileno())):
                _print_new(file, raw=raw)
                file.close()
                file = path.open("rb")
            time.sleep(POLL_S)
    except KeyboardInterrupt:
        raise click.exceptions.Exit(130) from None


def _print_new(file: BinaryIO, *, raw: bool) -> None:
    """Print the whole lines that ``file`` has beyond its position; of a line that is not finished only the others."""
    found = file.read()
    whole, newline, rest = found.rpartition(b"\n")
    for line in whole.split(b"\n") if newline else ():
        _show(line, raw=raw)
    file.seek(-len(rest), os.SEEK_CUR)
    sys.stdout.flush()
