"""The ports of one daemon in a bundle, so that functions of the engine take one argument instead of nine."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field

from banger.engine.machine import Places
from banger.engine.operations import Board
from banger.engine.ports import (
    GuestFactory,
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
    """Everything that the engine acts through. ``console_tail`` gives the last printable lines of a VM's console."""

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
    timeouts: Timeouts = field(default_factory=Timeouts)
