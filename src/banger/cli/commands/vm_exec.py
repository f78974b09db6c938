"""``vm exec`` and the hidden ``vm proxy``: bytes between this process's descriptors and a guest."""

from __future__ import annotations

import os
import select
import sys
import threading
from collections.abc import Sequence
from typing import TYPE_CHECKING

import click

from banger.cli import forward_env, params
from banger.cli.forward_env import forwarded
from banger.cli.pipes import CHUNK_BYTES, write_all
from banger.cli.session import Session, pass_session
from banger.client.refs import check_ref

if TYPE_CHECKING:
    from banger.client.streams import ProxyStream


@click.command("exec")
@click.argument("name", type=params.VM)
@click.argument("command", nargs=-1, required=True)
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.option(
    "-e", "--env", "env", multiple=True, metavar="K=V", help="Set a variable; repeatable."
)
@forward_env.option
@click.option("-w", "--workdir", metavar="DIR", help="Start in this directory of the guest.")
@pass_session
def exec_command(
    session: Session,
    *,
    name: str,
    command: Sequence[str],
    tty: bool,
    env: tuple[str, ...],
    forward_env: tuple[str, ...],
    workdir: str | None,
) -> None:
    """Run COMMAND in a VM through its agent, which works without a network; COMMAND's exit status.

    stdin, stdout and stderr pass through byte by byte. The status is 128 + signal if a signal ended COMMAND, 127 if it
    could not be started. Options of COMMAND need -- before it: banger vm exec web -- ls -l
    """
    from banger.cli.terminal import Attached, terminal_size  # noqa: PLC0415  not for proxy
    from banger.client.streams import ExecStream  # noqa: PLC0415  as above

    if tty and not sys.stdin.isatty():
        raise click.UsageError("-t needs a terminal on stdin")
    passed = forwarded(session.config, forward_env)
    rows, cols = terminal_size()
    request = {
        "argv": list(command),
        "env": _with_term({**passed, **params.parse_env(env)}, tty=tty),
        "cwd": workdir,
        "tty": tty,
        "rows": rows,
        "cols": cols,
    }
    # Not by way of the typed client: that loads msgspec and http.client, a third of this command's time.
    with ExecStream.open(session.transport.path, check_ref(name), request) as stream:
        status = Attached(stream, tty=tty).run()
    raise click.exceptions.Exit(status)


def _with_term(env: dict[str, str], *, tty: bool) -> dict[str, str]:
    """With a TTY the guest must know what kind of terminal it talks to."""
    return {"TERM": os.environ.get("TERM", "xterm"), **env} if tty else env


@click.command()
@click.argument("name")
@click.argument("port", type=click.IntRange(1, 65535))
@pass_session
def proxy(session: Session, *, name: str, port: int) -> None:
    """Connect stdin and stdout to a TCP port of a VM; for ssh's ProxyCommand. NAME may end in .banger."""
    from banger.client.streams import ProxyStream  # noqa: PLC0415  as above

    ref = check_ref(name.removesuffix(".banger"))
    with ProxyStream.open(session.transport.path, ref, port) as stream:
        threading.Thread(target=_pump_in, args=(stream,), daemon=True).start()
        for piece in stream.pieces():
            if not write_all(1, piece):
                break


def _pump_in(stream: ProxyStream) -> None:
    """Feed the guest from stdin. There is no half-close, so after its end the answer is waited for until nobody reads it."""
    while data := os.read(0, CHUNK_BYTES):
        if not stream.send(data):
            return
    poll = select.poll()
    poll.register(1, 0)  # POLLERR and POLLHUP come unasked
    poll.poll()
    stream.close()
