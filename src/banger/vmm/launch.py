"""What starting any VMM needs: its files are there, and its early end is noticed."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine
from pathlib import Path
from typing import Protocol

from banger.model.errors import GuestNotReadyError, HostLacksError
from banger.model.machine import LaunchRequest, VmmExit

DYING_S = 1.0  # between the end of a process's connections and its own


class Ending(Protocol):
    """A VMM that may end."""

    async def wait(self) -> VmmExit:
        """How it has ended, once it has."""
        ...


async def or_ended(vmm: Ending, work: Coroutine[object, object, None]) -> VmmExit | None:
    """Await ``work``, which talks to ``vmm``; how the VMM ended if it did before that, or at the same time, else None.

    What ``work`` raises while the VMM lives is raised; if it got no answer, the VMM is given a moment to end. ``work`` is over in any case.
    """
    working = asyncio.create_task(work)
    ended = asyncio.create_task(vmm.wait())
    tasks: set[asyncio.Task[object]] = {working, ended}
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done() and isinstance(working.exception(), GuestNotReadyError):
            await asyncio.wait({ended}, timeout=DYING_S)
        if ended.done():
            return ended.result()
        await working
        return None
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


def check_readable(request: LaunchRequest, kernel: Path) -> None:
    """HostLacksError unless everything is there that the VMM will open, ``kernel`` too; its own message about it would say less."""
    boot, paths = request.boot, request.paths
    for files, hint in (
        ((kernel, boot.initramfs, boot.rootfs), boot.manifest.remedy),
        (
            (request.root.path, paths.work, paths.identity),
            f"banger vm delete {request.name}, and create it again",
        ),
    ):
        for path in files:
            try:
                os.close(os.open(path, os.O_RDONLY | os.O_CLOEXEC))
            except OSError as error:
                raise HostLacksError(
                    f"{path} cannot be read", detail=error.strerror or "", hint=hint
                ) from error
