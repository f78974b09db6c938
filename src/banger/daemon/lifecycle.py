"""One daemon's life: lock, socket, reconcile, serve, let go.

One daemon per state directory: it holds ``bangerd.lock`` there. A second one says so and ends with status 0, since its caller can
use the first. SIGTERM and SIGINT end it (see `banger.daemon.ending`); VMs run on and are adopted by the next.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from banger.daemon.app import make_app
from banger.daemon.capping import Capper
from banger.daemon.catalogue import keep_up, take_in_prebuilt
from banger.daemon.compose import compose
from banger.daemon.ending import Ending
from banger.daemon.names import serve_names
from banger.daemon.server import bind, inherited, make_server
from banger.daemon.service import Service
from banger.engine.audit import keep_watch
from banger.engine.reconcile import reconcile
from banger.engine.tend import tend_stores
from banger.host import faults, fs
from banger.host.config import Config
from banger.host.locks import FileLock
from banger.model.errors import BangerError, HostLacksError

if TYPE_CHECKING:
    from banger.network.names import NameServer

log = logging.getLogger(__name__)


def prepare(config: Config) -> FileLock | None:
    """Make the directories and take the lock; None if another daemon has it."""
    try:
        for directory in (config.state_dir, config.runtime_dir):
            fs.make_private_dir(directory)
        lock = FileLock(config.daemon_lock_path)
        if not lock.acquire():
            return None
        for directory in (config.state_dir, config.ssh_key_path.parent, config.runtime_dir):
            fs.sweep_temporaries(directory)
        return lock
    except OSError as error:
        raise HostLacksError(
            f"{error.filename or config.state_dir} cannot be written",
            detail=str(error),
            hint="set BANGER_STATE_DIR and BANGER_RUNTIME_DIR to directories of your own",
        ) from error


async def serve(config: Config, ready_fd: int | None) -> None:
    """Serve until a signal; the caller holds the lock."""
    faults.load()
    service = compose(config)
    names: NameServer | None = None
    ending: Ending | None = None
    background: set[asyncio.Task[None]] = set()
    passed = inherited()
    listener = passed or bind(config.socket_path)
    try:
        said = await reconcile(service.engine)
        await _sweep_images(service)
        await keep_up(service)
        log.info(
            "bangerd %s ready, pid %d, %d sentences of reconcile",
            service.version,
            os.getpid(),
            len(said),
        )
        names = await serve_names(service, config.dns_port)
        server = make_server(make_app(service))
        ending = Ending(service.context.board, server.end, config.drain_s)
        for signo in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(signo, ending.asked)
        await take_in_prebuilt(service, config)
        background.add(asyncio.create_task(Capper(service).run()))
        background.add(asyncio.create_task(keep_watch(service.audit, config.reconcile_s)))
        service.image_work.begin_healing()
        if os.geteuid() == 0:  # nobody else has such stores
            background.add(asyncio.create_task(tend_stores(service.engine)))
        _tell_ready(ready_fd)
        await server._serve([listener])  # noqa: SLF001  serve() would take the signals over
    finally:
        for task in background:
            task.cancel()
        if ending is not None:
            await ending.close()
        if names is not None:
            await names.close()
        listener.close()
        if passed is None:  # else systemd goes on listening there
            with suppress(FileNotFoundError):
                config.socket_path.unlink()
        await _let_go(service)


async def _sweep_images(service: Service) -> None:
    """Remove what a build left that was killed with its daemon; what cannot be removed is tried again at the next build."""
    try:
        await service.context.images.sweep()
    except (BangerError, OSError) as error:
        log.warning("rests of interrupted image builds could not be removed: %s", error)


def _tell_ready(ready_fd: int | None) -> None:
    if ready_fd is not None:
        os.write(ready_fd, b"1")
        os.close(ready_fd)


async def _let_go(service: Service) -> None:
    context = service.context
    await service.image_work.close()
    await service.engine.close()
    await context.relays.close()
    await context.network.close()
    context.store.close()
