"""The network in bridge mode: namespace, bridge, TAPs and filter are those of `banger.network.user`, the uplink is routed by the host.

Its addresses come with the uplink (`banger.network.uplinks`), so that a lease is planned anew when a VM starts.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar

from banger.host.namespaces import probe_namespaces
from banger.host.probe import Answer
from banger.model.compat import override
from banger.model.errors import BangerError, HostLacksError, RefusedError
from banger.model.lease import Lease
from banger.model.machine import NetworkAttachment
from banger.model.spec import NetworkMode
from banger.network import filter as rules
from banger.network.plan import NetworkPlan
from banger.network.record import Files
from banger.network.space import Space
from banger.network.uplinks.client import HostUplinks
from banger.network.uplinks.slots import SlotPlan
from banger.network.user import UserNetwork

KIND = "routed"


class BridgeNetwork(UserNetwork):
    """One daemon's network with a routed uplink. Files: ``runtime_dir/net-bridge/``, and a log in ``log_dir``."""

    mode: ClassVar[NetworkMode] = NetworkMode.BRIDGE

    def __init__(
        self, runtime_dir: Path, log_dir: Path, uplinks: HostUplinks, *, pool: int = 0
    ) -> None:
        slot = SlotPlan().slot(1)  # until the uplink says which
        plan = NetworkPlan(slot.guests, slot.transfer, routed=True)
        super().__init__(runtime_dir, log_dir, plan=plan, pool=pool)
        self._files = Files(runtime_dir, log_dir, "net-bridge")
        self._kind = KIND
        self._uplinks = uplinks

    @override
    async def start(self) -> None:
        """Adopt the network of an earlier daemon, and remove what it left of uplinks; probes nothing."""
        if not await self._taken_over():
            await self._uplinks.start()

    @override
    async def settle(self, lease: Lease, mode: str) -> tuple[Lease, int | None]:
        """As `UserNetwork.settle`; starts the network, whose addresses are known only then."""
        lacks = await self._lacks()
        if lacks is not None:
            raise self._refusal(lacks)
        async with self._lock:
            try:
                space = await self._up()
            except (BangerError, OSError) as error:
                raise _no_uplink(error) from error
            if not space.guests():
                self._begin_linger()
            self._plan = space.plan
        return self._plan.readdressed(lease), self._plan.mtu

    @override
    async def attach(
        self,
        lease: Lease,
        mode: str,
        *,
        named: bool,
        outward: bool = True,
        groups: Sequence[str] = (),
    ) -> NetworkAttachment:
        """As `UserNetwork.attach`, without any other network to fall back to."""
        settled, _ = await self.settle(lease, mode)
        if settled != lease:
            raise RefusedError(
                f"VM {lease.vm_id} has addresses of another network",
                detail="the uplink has changed since its identity was written",
                hint="start the VM again",
            )
        attachment = await super().attach(
            lease, self.mode, named=named, outward=outward, groups=groups
        )
        if self._linger is not None:
            self._linger.cancel()
        return attachment

    @property
    def running(self) -> bool:
        """Whether it is there."""
        return self._space is not None

    @override
    async def describe(self) -> Mapping[str, str]:
        """As `UserNetwork.describe`; what it lacks is no fault where nobody asked for it."""
        lacks = await self._lacks()
        if lacks is not None:
            return {"mode": self.mode, "detail": lacks.why.partition("\n")[0]}
        return await super().describe()

    def leads(self, lease: Lease) -> bool:
        """Whether these are addresses of this network as it is now."""
        return self._space is not None and self._space.plan.gateway == lease.gateway

    @override
    async def _lacks(self) -> Answer | None:
        if self._space is not None:
            return None
        answer = await self._uplinks.available()
        if not answer:
            return answer
        probed = await asyncio.to_thread(probe_namespaces, rules.ruleset(self._plan, (), ()))
        return None if probed else probed

    @override
    async def _find_space(self) -> Space | None:
        return await Space.adopt(
            self._files, self._plan, self._kind, self._uplinks, pool=self._pool
        )

    @override
    async def _make_space(self) -> Space:
        return await Space.create(
            self._files, self._plan, self._kind, self._uplinks, pool=self._pool
        )

    def _refusal(self, lacks: Answer) -> HostLacksError:
        what, _, detail = lacks.why.partition("\n")
        return HostLacksError(what, detail=detail, hint=lacks.hint)


def _no_uplink(error: BangerError | OSError) -> BangerError:
    if isinstance(error, RefusedError | HostLacksError):
        return error
    return HostLacksError(
        f"the network in bridge mode cannot be had: {error}",
        detail=error.detail if isinstance(error, BangerError) else "",
        hint="run the VM without it: --network user",
    )
