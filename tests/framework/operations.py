"""What stages every operation on a VM goes through, found out by doing each once over a host in memory.

Tests that fail every step on purpose are driven by it, so that a new step is covered without a new test.
"""

import asyncio
import tempfile
from pathlib import Path

from banger.engine.adjust import Changes
from banger.model.spec import Forward, ForwardProtocol, VmSpec
from tests.framework.fake_world import World

SPEC = VmSpec(disk_bytes=1 << 30, work_bytes=1 << 30)
ADJUSTMENT = Changes(nat=False, add=(Forward(0, 80), Forward(0, 53, ForwardProtocol.UDP)))
CHANGES = Changes(name="two", memory_mib=640, work_bytes=2 << 30)


async def _once(directory):
    engine = World(directory).engine()
    board, found = engine.context.board, {}

    async def done(record):
        live = board.live(record.id)
        record = await live.wait() if live else record
        assert record.error is None, record.error
        found[record.kind] = [stage.name for stage in record.stages]

    try:
        async with asyncio.timeout(20):
            run = engine.create("one", "debian", SPEC, start=True, ready_s=None)
            await done(await run.wait())
            machine = engine.resolve("one")
            await done(await engine.change(machine, ADJUSTMENT))
            await done(engine.pause(machine))
            await done(engine.resume(machine))
            await done(engine.restart(machine, None))
            await done(engine.stop(machine, None, force=False))
            await done(await engine.change(machine, CHANGES))
            await done(engine.start(machine, None))
            await done(engine.delete(machine))
    finally:
        await engine.close()
        engine.context.store.close()
    return found


def stages():
    """Operation's kind -> the names of its stages, in order. ``vm.restart`` is that of a running VM."""
    with tempfile.TemporaryDirectory() as directory:
        return asyncio.run(_once(Path(directory)))
