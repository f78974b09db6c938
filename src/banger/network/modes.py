"""The networks of one daemon by mode, as one: `engine.ports.Network`. A VM may run in another one at its next start.

``auto`` is bridge mode where a helper answers this user, else user mode: nobody's network becomes another one because a daemon happens
to be root's. A VM's number and MAC are the same in both; its addresses are planned anew when it starts.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Mapping, Sequence

from banger.model.errors import BangerError
from banger.model.lease import Lease, Traffic
from banger.model.machine import NetworkAttachment
from banger.model.residue import NetworkSurvey, Stray
from banger.model.spec import ForwardProtocol
from banger.network.bridge import BridgeNetwork
from banger.network.uplinks.client import HostUplinks
from banger.network.user import GuestFlooded, GuestLookup, UserNetwork

log = logging.getLogger(__name__)


class DaemonNetwork:
    """See `engine.ports.Network`."""

    def __init__(self, user: UserNetwork, bridge: BridgeNetwork, uplinks: HostUplinks) -> None:
        self._user = user
        self._bridge = bridge
        self._uplinks = uplinks

    def answer_names(self, lookup: GuestLookup, flooded: GuestFlooded) -> None:
        """Tell guests the names that ``lookup`` knows for them, and ``flooded`` who asks too often. To be called before `start`."""
        for network in (self._bridge, self._user):
            network.answer_names(lookup, flooded)

    async def start(self) -> None:
        """Adopt what an earlier daemon left of either."""
        await self._user.start()
        try:
            await self._bridge.start()
        except (BangerError, OSError):  # the other mode works all the same
            log.exception("network in bridge mode")

    def plan_lease(self, vm_id: str, taken: Sequence[Lease]) -> Lease:
        """A free number, with addresses as in user mode."""
        return self._user.plan_lease(vm_id, taken)

    async def settle(self, lease: Lease, mode: str) -> tuple[Lease, int | None]:
        """The lease as it is in the network to which ``mode`` leads now, and the MTU there."""
        if mode == "bridge":
            return await self._bridge.settle(lease, mode)
        if mode == "auto" and await self._uplinks.helper_answers():
            try:
                return await self._bridge.settle(lease, mode)
            except BangerError as error:
                log.warning(
                    "VM %s: user mode, because bridge mode cannot be had: %s", lease.vm_id, error
                )
        return await self._user.settle(lease, mode)

    async def attach(
        self,
        lease: Lease,
        mode: str,
        *,
        named: bool,
        outward: bool = True,
        groups: Sequence[str] = (),
    ) -> NetworkAttachment:
        """Attach to the network that the lease was settled in."""
        routed = mode == "bridge" or (mode == "auto" and self._bridge.leads(lease))
        network = self._bridge if routed else self._user
        return await network.attach(lease, mode, named=named, outward=outward, groups=groups)

    def adopted(self, lease: Lease) -> None:
        """A VM that runs holds this lease."""
        self._of(lease).adopted(lease)

    async def detach(self, lease: Lease) -> None:
        """Take it out of whichever it is in; idempotent."""
        for network in (self._bridge, self._user):
            await network.detach(lease)

    async def set_outward(self, lease: Lease, *, outward: bool) -> None:
        """Let the guest out into the world, or not any more, where it is."""
        await self._of(lease).set_outward(lease, outward=outward)

    async def set_groups(self, lease: Lease, groups: Sequence[str]) -> None:
        """Let the guest reach those who share a group with it where it is, and no others."""
        await self._of(lease).set_groups(lease, groups)

    def traffic(self, lease: Lease) -> Traffic | None:
        """What the guest sent and received, where it is."""
        return self._of(lease).traffic(lease)

    async def dial(
        self, lease: Lease, port: int, *, protocol: ForwardProtocol = ForwardProtocol.TCP
    ) -> socket.socket:
        """A connected socket to the guest, where it is."""
        return await self._of(lease).dial(lease, port, protocol=protocol)

    async def survey(self, leases: Callable[[], Sequence[Lease]]) -> NetworkSurvey:
        """Of both."""
        one, other = await self._user.survey(leases), await self._bridge.survey(leases)
        return NetworkSurvey(one.attached | other.attached, (*one.strays, *other.strays))

    async def end_stray(self, stray: Stray, leases: Callable[[], Sequence[Lease]]) -> None:
        """Of either, if it still belongs to nobody."""
        for network in (self._bridge, self._user):
            await network.end_stray(stray, leases)

    async def describe(self) -> Mapping[str, str]:
        """What ``auto`` leads to, and how each of them is."""
        described = await self._user.describe()
        helper = await self._uplinks.helper_answers()
        if not helper and not self._bridge.running:
            return described
        routed = await self._bridge.describe()
        mode = "bridge" if helper else described["mode"]
        detail = f"{described['mode']}: {described['detail']}; {routed['mode']}: {routed['detail']}"
        return {"mode": mode, "detail": detail}

    async def stop(self, *, if_unused: bool = True) -> None:
        """End both, or those that nobody uses."""
        for network in (self._bridge, self._user):
            await network.stop(if_unused=if_unused)

    async def close(self) -> None:
        """Let go of both."""
        for network in (self._bridge, self._user):
            await network.close()
        await self._uplinks.close()

    def _of(self, lease: Lease) -> UserNetwork:
        return self._bridge if self._bridge.leads(lease) else self._user
