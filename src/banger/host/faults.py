"""Named trace points: a call that does nothing, unless a test has asked for a fault at that name.

``BANGER_FAULTS`` holds ``NAME=ACTION`` pairs separated by commas; it is read once, at start-up of the daemon or of a command that has points.
Actions: ``kill`` (SIGKILL to this process), ``error`` (a BangerError), ``hang`` (until cancelled), ``slow`` (`SLOW_S` later). Without the
variable a point costs one look-up in an empty dictionary.
"""

from __future__ import annotations

import os
import signal
import threading
import time

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
    action = _struck(name)
    if action is None:
        return
    import asyncio  # noqa: PLC0415  not for commands, which have points of the other kind

    await (asyncio.Event().wait() if action == "hang" else asyncio.sleep(SLOW_S))


def blocking_point(name: str) -> None:
    """As `point`, for work without an event loop; a ``hang`` ends by a signal."""
    action = _struck(name)
    if action == "hang":
        threading.Event().wait()
    elif action == "slow":
        time.sleep(SLOW_S)


def _struck(name: str) -> str | None:
    """Do at the point what is done at once; what else is to be done there, if anything."""
    action = _faults.get(name)
    if action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    if action == "error":
        raise BangerError(f"fault injected at {name}", hint="unset BANGER_FAULTS")
    return action
