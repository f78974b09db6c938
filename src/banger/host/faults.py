"""Named trace points: a call that does nothing, unless a test has asked for a fault at that name.

``BANGER_FAULTS`` holds ``NAME=ACTION`` pairs separated by commas; it is read once, at start-up of the daemon. Actions: ``kill`` (SIGKILL
to this process), ``error`` (a BangerError), ``hang`` (until cancelled), ``slow`` (`SLOW_S` later). Without the variable a point costs
one look-up in an empty dictionary.
"""

from __future__ import annotations

import asyncio
import os
import signal

from banger.model.errors import BangerError

SLOW_S = 1.0
_faults: dict[str, str] = {}


def load(text: str | None = None) -> None:
    """Set the faults from ``text`` (default: the environment); an empty text clears them."""
    text = os.environ.get("BANGER_FAULTS", "") if text is None else text
    _faults.clear()
    for pair in filter(None, text.split(",")):
        name, _, action = pair.partition("=")
        if action not in {"kill", "error", "hang", "slow"}:
            raise ValueError(f"fault {pair!r}: the action is kill, error, hang or slow")
        _faults[name] = action


async def point(name: str) -> None:
    """The trace point ``name``, for example ``vm.create.disks.after``."""
    action = _faults.get(name)
    if action is None:
        return
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "hang":
        await asyncio.Event().wait()
    if action == "slow":
        await asyncio.sleep(SLOW_S)
        return
    raise BangerError(f"fault injected at {name}", hint="unset BANGER_FAULTS")
