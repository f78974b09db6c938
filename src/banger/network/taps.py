"""The TAPs of one network: made when a VM needs one, or ahead, in the pool.

A pooled TAP, ``tap-pool-N``, is a port of the bridge like any other, closed and down: nobody has it open, and nothing passes. The next VM's
TAP is one of them, renamed. It waits in the namespace, not in the daemon, so that the next daemon finds it and it ends with the network.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
from collections.abc import Callable
from pathlib import Path

from banger.host.netlink import Route
from banger.host.tun import end_with_descriptor
from banger.model.errors import BangerError
from banger.model.lease import Lease
from banger.network.control import ask, ask_one
from banger.network.plan import BRIDGE, NetworkPlan, tap_name

log = logging.getLogger(__name__)

POOL = "tap-pool-"
_MAX_PAUSE_S = 60.0


class Taps:
    """By ``route`` and the holder behind ``control``; `plug`, `plug_named` and `remove` must not overlap (the caller has a lock)."""

    def __init__(
        self, control: Path, route: Route, plan: Callable[[], NetworkPlan], *, pool: int
    ) -> None:
        self._control = control
        self._route = route
        self._plan = plan
        self._size = pool
        self._pool: list[str] = []

    @property
    def pooled(self) -> tuple[str, ...]:
        """The TAPs that wait."""
        return tuple(self._pool)

    def held(self) -> list[str]:
        """Names of the TAPs that somebody holds."""
        return [name for name in self._route.ports(BRIDGE) if not name.startswith(POOL)]

    def find(self) -> None:
        """Know the pool that an earlier daemon left. One that is up is not ours."""
        ports = self._route.ports(BRIDGE)
        self._pool = sorted(name for name, up in ports.items() if name.startswith(POOL) and not up)

    async def plug(self, lease: Lease) -> int:
        """The descriptor of the TAP of this lease, whose filter is in force; up. On failure there is no TAP."""
        name = tap_name(lease)
        tap = await self._open_pooled(name)
        if tap is None:
            tap = await ask_one(self._control, "tap", name=name)
            pooled = False
        else:
            pooled = True
        try:
            self._connect(lease, port=pooled)
        except BaseException:
            os.close(tap)
            raise
        return tap

    async def plug_named(self, lease: Lease) -> None:
        """As `plug`, for a process that opens the TAP by its name; `remove` takes it away."""
        name = tap_name(lease)
        pooled = self._rename_pooled(name)
        if not pooled:
            await ask(self._control, "uplink", name=name)
        try:
            self._connect(lease, port=pooled)
        except BaseException:
            self._route.delete_link(name)
            raise

    def remove(self, lease: Lease) -> None:
        """Idempotent."""
        self._route.delete_link(tap_name(lease))
        self._route.forget_neighbour(BRIDGE, lease.ip)

    def drop(self, name: str) -> None:
        """Remove a TAP that belongs to nobody; idempotent."""
        if name in self.held():
            self._route.delete_link(name)

    def _connect(self, lease: Lease, *, port: bool) -> None:
        """Make the guest's TAP a port of the bridge, unless it is one, and set it up."""
        name = tap_name(lease)
        if not port:
            self._make_port(name)
        mac = bytes.fromhex(lease.mac.replace(":", ""))
        self._route.fix_neighbour(BRIDGE, name, mac, lease.ip)
        self._route.set_link(name, up=True)

    def _make_port(self, name: str) -> None:
        self._route.set_link(name, mtu=self._plan().mtu)
        self._route.add_closed_port(BRIDGE, name)

    # The pool

    def _first(self) -> str | None:
        """The next TAP that still waits as it was left, no longer in the pool; opening one that is gone would make another."""
        while self._pool:
            pooled = self._pool.pop(0)
            if self._route.is_waiting_port(BRIDGE, pooled):
                return pooled
            log.warning("network: %s of the pool is gone or changed", pooled)
        return None

    async def _open_pooled(self, name: str) -> int | None:
        """A pooled TAP, opened and called ``name``; None if there is none that can be had. It goes with the descriptor."""
        while (pooled := self._first()) is not None:
            try:
                tap = await ask_one(self._control, "tap", name=pooled)
            except OSError as error:
                log.warning("network: %s of the pool cannot be had: %s", pooled, error)
                continue
            try:
                end_with_descriptor(tap)  # first: whatever happens, it goes with us
                self._route.rename(pooled, name)
            except BaseException as error:
                os.close(tap)
                if not isinstance(error, OSError):
                    raise
                log.warning("network: %s of the pool cannot be used: %s", pooled, error)
                continue
            return tap
        return None

    def _rename_pooled(self, name: str) -> bool:
        """A pooled TAP is called ``name`` now; False if there is none that can be had."""
        while (pooled := self._first()) is not None:
            try:
                self._route.rename(pooled, name)
            except OSError as error:
                log.warning("network: %s of the pool cannot be used: %s", pooled, error)
            else:
                return True
        return False

    async def fill_later(self, pause_s: float, failed: Callable[[Exception], bool]) -> None:
        """`fill` after a pause. What keeps it from that may pass: again after growing ones, as long as ``failed`` wants it."""
        while True:
            await asyncio.sleep(pause_s)
            try:
                await self.fill()
            except (BangerError, OSError) as error:
                if not failed(error):
                    return
                pause_s = min(4 * pause_s, _MAX_PAUSE_S)
            else:
                return

    async def fill(self) -> None:
        """Bring the pool to its size, one TAP at a time: others may attach in between. Links of others with such names are passed by."""
        while len(self._pool) > self._size:
            self._route.delete_link(self._pool.pop())
        strange: set[str] = set()
        while len(self._pool) < self._size:
            ports = self._route.ports(BRIDGE)  # one of these waits already, or somebody else has it
            names = (f"{POOL}{number}" for number in range(2 * self._size))
            name = next((each for each in names if each not in ports and each not in strange), None)
            if name is None:
                raise BangerError(
                    "too many links that are not banger's have the pool's names",
                    detail=f"{POOL}0 to {POOL}{2 * self._size - 1} are taken",
                    hint="set tap_pool_size = 0, or remove those links",
                )
            try:
                await ask(self._control, "uplink", name=name)
                self._make_port(name)
            except OSError as error:
                if error.errno not in {errno.EBUSY, errno.EINVAL}:
                    raise
                log.warning("network: there is a link %s that is not banger's", name)
                strange.add(name)
            else:
                self._pool.append(name)
            await asyncio.sleep(0)
