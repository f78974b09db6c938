"""The ports of one daemon in a bundle, so that functions of the engine take one argument instead of nine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from banger.engine.guest_ports import GuestFactory
from banger.engine.machine import Places
from banger.engine.operations import Board
from banger.engine.ports import (
    Identity,
    Images,
    Network,
    Relays,
    Storage,
    Store,
    Vmms,
)
from banger.model.machine import Timeouts, VmPaths


@dataclass(frozen=True, slots=True)
class Context:
    """Everything that the engine acts through. ``console_tail`` gives the last printable lines of a VM's console; ``stale_seeds`` takes the ids of
    images whose work seed is to be brought up to date (`banger.engine.image_work.ImageWork.heal`).
    """

    store: Store
    board: Board
    vmms: Vmms
    storage: Storage
    network: Network
    relays: Relays
    images: Images
    identity: Identity
    guests: GuestFactory
    console_tail: Callable[[VmPaths], str]
    places: Places
    boot_slots: asyncio.Semaphore
    questions: asyncio.Semaphore
    """Guests that are asked in the background at once: more than there are processors only keep each other from answering in time."""
    stale_seeds: asyncio.Queue[str] = field(default_factory=asyncio.Queue)
    timeouts: Timeouts = field(default_factory=Timeouts)
