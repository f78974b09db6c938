"""Firecracker's end of a vsock device, for an agent on this host: CONNECT, OK, then bytes both ways until one side ends."""

import asyncio
import contextlib
import threading

AGENT_PORT = 1024


class VsockRelay:
    """Listens at ``path`` and leads port 1024 to the Unix socket ``agent``; every other port is closed to all.

    It runs in a thread of its own, so that a test may be synchronous, or busy.
    """

    def __init__(self, path, agent):
        self._path, self._agent = path, agent
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="vsock relay")
        self.connections = 0

    def __enter__(self):
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_):
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join(10)
        self._path.unlink(missing_ok=True)

    def _run(self):
        self._loop.run_until_complete(self._serve())
        self._loop.close()

    async def _serve(self):
        self._stop = asyncio.Event()
        server = await asyncio.start_unix_server(self._connection, self._path)
        self._ready.set()
        await self._stop.wait()
        server.close()
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()
            await asyncio.wait({task})

    async def _connection(self, reader, writer):
        self.connections += 1
        try:
            line = await reader.readuntil(b"\n")
            if line != b"CONNECT %d\n" % AGENT_PORT:
                return
            inner_reader, inner_writer = await asyncio.open_unix_connection(self._agent)
            try:
                writer.write(b"OK %d\n" % (2**30 + self.connections))
                ways = {
                    asyncio.create_task(carry(reader, inner_writer)),
                    asyncio.create_task(carry(inner_reader, writer)),
                }
                _, rest = await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
                for way in rest:
                    way.cancel()
                await asyncio.wait(ways)
            finally:
                inner_writer.close()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


async def carry(reader, writer):
    with contextlib.suppress(OSError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
