"""The real API server on a real Unix socket, over a host in memory: in a test's own process, or as a program.

``python -m tests.framework.api_server DIRECTORY`` serves until SIGTERM; the socket is DIRECTORY/s/bangerd.sock.
"""

import asyncio
import collections
import contextlib
import signal
import sys
from pathlib import Path

from banger.daemon.app import make_app
from banger.daemon.server import bind, make_server
from banger.daemon.service import Service
from banger.engine.image_work import ImageWork
from tests.framework.fake_world import World


def socket_path(directory):
    """Where it listens."""
    return Path(directory) / "s" / "bangerd.sock"


@contextlib.asynccontextmanager
async def serving(directory, warnings=()):
    """A `Service` over a new `World` in ``directory``, both while they are served."""
    world = World(directory)
    engine = world.engine()
    service = Service(
        engine=engine, image_work=ImageWork(engine), started_at="2026-01-01T00:00:00.000Z", version="0",
        state_dir=str(directory), runtime_dir=str(directory), accel="tcg", max_console_bytes=1 << 20,
        warnings=warnings,
    )  # fmt: skip
    listener = bind(socket_path(directory))
    server = make_server(make_app(service))
    task = asyncio.create_task(server._serve([listener]))
    try:
        yield service, world
    finally:
        server.end()
        await asyncio.wait_for(task, 60)
        listener.close()
        await service.image_work.close()
        await engine.close()
        engine.context.store.close()


async def _main(directory):
    ended = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, ended.set)
    async with serving(directory) as (_, world):
        world.identities = collections.deque(maxlen=1)  # the fake's own notes would grow
        print("ready", flush=True)
        await ended.wait()


if __name__ == "__main__":
    asyncio.run(_main(Path(sys.argv[1])))
