"""``banger-helper``: the narrow root service. It makes what ordinary users' networks and root disks need on the host, and nothing else."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

import click

from banger import __version__
from banger.helper.audit import AuditLog
from banger.helper.listening import bind, forget, group_id, inherited
from banger.helper.policy import Policy
from banger.helper.server import Server
from banger.helper.verbs import World
from banger.host import faults, fs
from banger.host.config import load_config
from banger.model.errors import BangerError, HostLacksError
from banger.network.uplinks.service import QUOTA, UplinkService
from banger.network.uplinks.slots import SlotPlan
from banger.storage.snapshots import rules
from banger.storage.snapshots.service import SnapshotService

log = logging.getLogger(__name__)


@click.command()
@click.version_option(__version__, prog_name="banger-helper")
@click.option("--socket", "path", help="Where to listen.  [default: helper_socket]")
@click.option(
    "--group", default="banger", show_default=True, help="Who may ask besides root; empty: nobody."
)
@click.option("--state-dir", help="Ledger and audit log.  [default: helper_state_dir]")
@click.option(
    "--prefix", help="Private network that guests' addresses are of.  [default: bridge_prefix]"
)
@click.option(
    "--snapshots",
    default=rules.QUOTA,
    show_default=True,
    type=click.IntRange(0, rules.MAX_SLOTS),
    help="Snapshot devices a user.",
)
@click.option(
    "--quota", default=QUOTA, show_default=True, type=click.IntRange(1, 64), help="Uplinks a user."
)
def main(
    path: str | None,
    group: str,
    state_dir: str | None,
    prefix: str | None,
    quota: int,
    snapshots: int,
) -> None:
    """Serve root and the members of a group until SIGTERM. What was made for them stays.

    Defaults are of /etc/banger/config.toml. systemd may pass the listening socket; see banger setup helper.
    """
    logging.basicConfig(format="%(levelname)s %(name)s: %(message)s", level=logging.INFO)
    try:
        if os.geteuid() != 0:
            raise HostLacksError("banger-helper must run as root", hint="sudo banger-helper")
        faults.load()
        config = load_config()
        directory = Path(state_dir or config.helper_state_dir).absolute()
        world = World(
            UplinkService(directory, SlotPlan(prefix or config.bridge_prefix), quota=quota),
            SnapshotService(directory, quota=rules.Quota(snapshots)),
        )
        asyncio.run(serve(Path(path or config.helper_socket).absolute(), group_id(group), world))
    except BangerError as error:
        sys.exit(_show(error))


async def serve(path: Path, gid: int | None, world: World) -> None:
    """Serve until SIGTERM or SIGINT; what was made outlives it."""
    directory = world.uplinks.directory
    fs.make_private_dir(directory)
    passed = inherited()
    try:
        await world.uplinks.start()
        await world.snapshots.start()
        listener = passed or bind(path, gid)
    except BaseException:
        await _let_go(world)
        raise
    audit = AuditLog(directory / "audit.log")
    server = Server(listener, world, Policy(gid, time.monotonic), audit)
    serving = asyncio.create_task(server.serve())
    for signo in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signo, serving.cancel)
    audit.note("start", pid=os.getpid(), version=__version__)
    log.info("banger-helper %s serves %s", __version__, path)
    try:
        with suppress(asyncio.CancelledError):
            await serving
    finally:
        await server.close()
        if passed is None:
            forget(path)
        await _let_go(world)


async def _let_go(world: World) -> None:
    world.snapshots.close()
    await world.uplinks.close()


def _show(error: BangerError) -> int:
    """Print ``error``; the exit status."""
    click.echo(error.told(), err=True)
    return error.exit_status


if __name__ == "__main__":
    main()
