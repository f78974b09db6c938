"""vm.promote: the disks of a VM at rest become an image. The VM itself is not changed, and starts afterwards as before."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

from banger.engine.context import Context
from banger.engine.effects import undo_effect
from banger.engine.image_stages import ImageStages
from banger.engine.machine import Machine
from banger.engine.operations import OperationRun
from banger.host.undo import UndoStack
from banger.model.promotion import Promotion, PromotionSource

_DEVICE = "device"


async def promote(
    context: Context, machine: Machine, run: OperationRun, wish: Promotion, one: asyncio.Lock
) -> None:
    """Make the image; images are made one after another (``one``). Broken off, nothing of it is left, on disk or as a device."""
    async with UndoStack() as opened, one, ImageStages(run) as progress:
        await progress("check", machine.name)
        boot = context.images.boot_stack(machine.record.image_id)
        spec, paths = machine.record.spec, machine.paths
        await context.storage.check_image(boot)
        await context.storage.check(boot, spec, paths)

        async def copy_root(target: Path) -> str:
            context.store.intend(machine.id, _DEVICE)
            undo = functools.partial(undo_effect, context, machine, _DEVICE)
            opened.push(f"undo {_DEVICE}", undo, deadline_s=30)
            return await context.storage.flatten(boot, spec, paths, target)

        source = PromotionSource(
            vm_id=machine.id,
            vm_name=machine.name,
            image_id=machine.record.image_id,
            work=paths.work,
            copy_root=copy_root,
            needed_bytes=context.storage.flat_bytes(boot, paths),
        )
        manifest = await context.images.promote(wish, source, progress=progress)
        await progress("place", manifest.id)
