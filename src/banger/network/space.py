"""A running network: the holder's namespace with its links, filter and uplink, and what keeps them whole.

Order matters everywhere: a TAP is up and handed out only after the filter knows its guest, and what a guest may goes after its TAP.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager, suppress

import msgspec

from banger.host import nft, proc
from banger.host.conntrack import Connections
from banger.host.namespaces import NamespacePair
from banger.host.netlink import LINK_GROUP, Route
from banger.host.undo import UndoStack
from banger.model.clock import monotonic_ms
from banger.model.errors import BangerError, HostLacksError
from banger.model.lease import Lease
from banger.model.process import ProcessIdentity
from banger.network.control import HolderError, ask, ask_one
from banger.network.gate import Gate
from banger.network.guest_names import PORT, Flooded, GuestNames, PeerLookup
from banger.network.host_addresses import AddressWatch
from banger.network.plan import BRIDGE, BRIDGE_MAC, UPLINK, NetworkPlan, tap_name
from banger.network.processes import end, start_holder, start_uplink
from banger.network.record import Files, NetworkRecord, read_record, write_record
from banger.network.taps import Taps
from banger.network.uplinks.client import HostUplinks

log = logging.getLogger(__name__)

UDP_SINCE = CONNECTIONS_SINCE = 2
POOL_SINCE = 3
"""Protocols of the holder with which came what it can be asked for."""
_SHORT_LIFE_MS = 2000.0
_FIRST_PAUSE_S, _MAX_PAUSE_S, _RETRY_S = 0.1, 5.0, 1.0
_REFILL_S = 0.2


class Space:
    """One running network. Make it with `create` or `adopt`; `add_tap`, `remove` and `end` must not overlap (the caller has a lock)."""

    def __init__(
        self,
        files: Files,
        record: NetworkRecord,
        route: Route,
        uplinks: HostUplinks | None = None,
        *,
        pool: int = 0,
    ) -> None:
        self._files = files
        self._uplinks = uplinks
        self._record = record
        self._route = route
        self._gate = Gate(self._nft)
        pool = pool if record.protocol >= POOL_SINCE else 0
        self.taps = Taps(files.control, route, lambda: self.plan, pool=pool)
        self._names: GuestNames | None = None
        self._refilling = False
        self._forgetting = False
        self._to_forget: dict[str, None] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._watch: AddressWatch | None = None
        self._link_watch: AddressWatch | None = None
        self._troubles: dict[str, str] = {}

    @property
    def trouble(self) -> str:
        """What is wrong now, for people; empty if all is well."""
        return ", ".join(self._troubles.values())

    @property
    def plan(self) -> NetworkPlan:
        """By which it is laid out."""
        return self._record.plan

    @property
    def holder(self) -> ProcessIdentity:
        """The holder's process."""
        return self._record.holder

    @property
    def uplink(self) -> ProcessIdentity | None:
        """The uplink's process, if it runs."""
        return self._record.uplink

    @classmethod
    async def create(
        cls,
        files: Files,
        plan: NetworkPlan,
        kind: str,
        uplinks: HostUplinks | None = None,
        *,
        pool: int = 0,
    ) -> Space:
        """Start a holder and lay out everything inside; on failure nothing is left. With ``uplinks`` the plan comes with the uplink."""
        async with UndoStack() as undo:
            holder = await start_holder(files)
            undo.push("end the network's holder", lambda: _end_all(files, holder, None))
            record = NetworkRecord(holder, plan, kind, whole=False)
            write_record(files.record, record)
            space = cls(files, record, await _route(files), uplinks, pool=pool)
            undo.push("close the network", space.close)
            if uplinks is None:
                await ask(files.control, "uplink", name=UPLINK)
            else:
                await space._ask_for_uplink()
                undo.push("give the uplink back", space._give_back)
            space._lay_out()
            await space._gate.reset(space.plan)
            space._lay_out_uplink()
            if uplinks is None:
                await space._start_uplink()
            await space._guard()
            space._write_down(whole=True)
            undo.release()
        space._refill()
        return space

    @classmethod
    async def adopt(
        cls,
        files: Files,
        plan: NetworkPlan,
        kind: str,
        uplinks: HostUplinks | None = None,
        *,
        pool: int = 0,
    ) -> Space | None:
        """Take over what an earlier daemon left, its filter renewed; None if there is nothing of use."""
        record = read_record(files.record)
        if record is None or not record.whole or not proc.alive(record.holder):
            return None
        plan = plan if uplinks is None else record.plan  # a routed uplink's is given, not chosen
        if not record.fits(plan, kind) or (uplinks is not None) != plan.routed:
            log.warning("the network of an earlier daemon is laid out differently; it is ended")
            return None
        try:
            reply, _ = await ask(files.control, "hello")
        except (OSError, HolderError) as error:
            log.warning("the network of an earlier daemon does not answer; it is ended: %s", error)
            return None
        if (reply.get("pid"), reply.get("protocol")) != (record.holder.pid, record.protocol):
            return None
        async with UndoStack() as undo:
            space = cls(files, record, await _route(files), uplinks, pool=pool)
            undo.push("let the network go", space.close)
            async with space._inside() as inside:
                await space._gate.read(inside, space.guests())
            await space._gate.reset(space.plan)
            space._lay_out_for_peers()
            space.taps.find()
            if record.uplink is None or not proc.alive(record.uplink):
                space._set_uplink(None)
            await space._guard()
            if uplinks is not None:
                await space._guard_routed()
            undo.release()
        space._refill()
        return space

    def has(self, lease: Lease) -> bool:
        """Whether this guest may speak here."""
        return self._gate.has(lease)

    def guests(self) -> list[str]:
        """Names of the TAPs that somebody holds."""
        return self.taps.held()

    async def add_tap(self, lease: Lease, *, outward: bool, groups: Sequence[str] = ()) -> int:
        """The descriptor of a new TAP for this lease, filtered and up; ``outward``: to the world outside too. On failure there is no TAP."""
        await self._let_in(lease, outward=outward, groups=groups)
        tap = await self.taps.plug(lease)
        self._refill()
        return tap

    async def add_named_tap(
        self, lease: Lease, *, outward: bool, groups: Sequence[str] = ()
    ) -> tuple[int, int]:
        """As `add_tap`, for a process that opens the TAP by its name: descriptors of the namespaces to do it in, the caller's."""
        await self._let_in(lease, outward=outward, groups=groups)
        await self.taps.plug_named(lease)
        try:
            _, (user, network) = await ask(self._files.control, "namespaces", expect=2)
        except BaseException:
            self.taps.remove(lease)
            raise
        self._refill()
        return user, network

    async def _let_in(self, lease: Lease, *, outward: bool, groups: Sequence[str]) -> None:
        """Let the filter know the guest; an older TAP of this name is removed first."""
        self._route.delete_link(tap_name(lease))
        await self._gate.let_in(lease, outward=outward, groups=groups)

    async def remove(self, lease: Lease) -> None:
        """Take the guest's TAP away, and what it was to others; idempotent."""
        self.taps.remove(lease)
        if await self._gate.let_go(lease):
            self._cut(lease.ip)

    async def set_outward(self, lease: Lease, *, outward: bool) -> None:
        """Let a guest speak to the world outside, or not any more; what it had open there is cut, and soon forgotten."""
        if not self.has(lease):
            raise ConnectionRefusedError(f"VM {lease.vm_id} is not in the network")
        await self._gate.set_outward(lease, outward=outward)
        if not outward:
            self._cut(lease.ip)

    def outward(self, lease: Lease) -> bool:
        """Whether this guest may speak to the world outside."""
        return self._gate.outward(lease)

    async def set_groups(self, lease: Lease, groups: Sequence[str]) -> None:
        """Let a guest reach those in a group of its, and no others."""
        if not self.has(lease):
            raise ConnectionRefusedError(f"VM {lease.vm_id} is not in the network")
        await self._gate.set_groups(lease, groups)

    def _refill(self) -> None:
        """Bring the pool to its size a little later: who attaches now does not wait for it, nor do those who come right after."""
        if not self._refilling:
            self._refilling = True
            self._spawn(self._fill_later())

    async def _fill_later(self) -> None:
        try:
            await self.taps.fill_later(_REFILL_S, self._not_filled)
        finally:
            self._refilling = False
        self._troubles.pop("pool", None)

    def _not_filled(self, error: Exception) -> bool:
        if alive := proc.alive(self.holder):
            self._complain("pool", f"TAPs cannot be made ahead: {error}")
        return alive

    def _cut(self, address: str) -> None:
        """Have the connections of a guest forgotten. Nobody waits for it, since the kernel looks through its whole table (10 ms), and if it
        fails it is only slower: no packet of theirs passes any more, and the kernel forgets them by time.
        """
        if self._record.protocol >= CONNECTIONS_SINCE:
            self._to_forget[address] = None
            if not self._forgetting:
                self._forgetting = True
                self._spawn(self._forget_all())

    async def _forget_all(self) -> None:
        """One address after the other, however many guests go at once."""
        try:
            while self._to_forget:
                address = next(iter(self._to_forget))
                del self._to_forget[address]
                await self._forget(address)
        finally:
            self._forgetting = False

    async def _forget(self, address: str) -> None:
        try:
            channel = socket.socket(fileno=await ask_one(self._files.control, "netfilter"))
            with Connections(channel) as connections:
                count = await asyncio.to_thread(connections.forget, address)
        except (OSError, HolderError) as error:
            log.warning("network: connections of %s could not be forgotten: %s", address, error)
        else:
            log.info("network: %d connections of %s forgotten", count, address)

    async def tcp_socket(self) -> socket.socket:
        """An unconnected non-blocking TCP socket inside the namespace."""
        return await self._opened("tcp")

    async def udp_socket(self) -> socket.socket:
        """As `tcp_socket`, for UDP; HostLacksError if the holder is too old to give one."""
        if self._record.protocol < UDP_SINCE:
            raise HostLacksError(
                "the network of the VMs that run is of an older banger and carries no UDP into them",
                hint="stop all VMs, wait half a minute, and start them again",
            )
        return await self._opened("udp")

    async def serve_names(self, lookup: PeerLookup, flooded: Flooded | None = None) -> None:
        """Answer guests' questions for names of peers from now on; what keeps it from that is said."""
        try:
            opened = await self.udp_socket()
            try:
                opened.bind((self.plan.names, PORT))
                self._names = GuestNames(opened, lookup, flooded)
            except BaseException:
                opened.close()
                raise
        except (BangerError, OSError) as error:
            self._complain("names", f"guests are told no names: {error}")

    async def _opened(self, kind: str) -> socket.socket:
        opened = socket.socket(fileno=await ask_one(self._files.control, kind))
        opened.setblocking(False)  # noqa: FBT003  the standard library's signature
        return opened

    async def end(self) -> None:
        """End uplink and holder; the kernel removes the rest. Idempotent."""
        await self.close()
        with suppress(BangerError, OSError):  # it goes with the namespace anyway
            await self._give_back()
        await _end_all(self._files, self.holder, self.uplink)

    async def close(self) -> None:
        """Let go: holder and uplink live on. Idempotent."""
        for watch in (self._watch, self._link_watch):
            if watch is not None:
                watch.close()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        if self._names is not None:
            self._names.close()
        self._route.close()

    def _lay_out(self) -> None:
        plan, route = self._record.plan, self._route
        route.add_bridge(BRIDGE, BRIDGE_MAC)
        route.add_address(BRIDGE, plan.gateway, plan.prefix_length)
        route.add_address(BRIDGE, plan.dns, plan.prefix_length)
        route.add_address(BRIDGE, plan.names, plan.prefix_length)
        route.set_link(BRIDGE, up=True, mtu=plan.mtu)
        route.forward_ipv4(BRIDGE)
        route.answer_for_neighbours(BRIDGE)

    def _lay_out_for_peers(self) -> None:
        """What an older banger did not lay out; idempotent."""
        self._route.answer_for_neighbours(BRIDGE)
        try:
            self._route.add_address(BRIDGE, self.plan.names, self.plan.prefix_length)
        except OSError as error:
            if error.errno != errno.EEXIST:
                raise

    def _lay_out_uplink(self) -> None:
        plan, route = self._record.plan, self._route
        route.add_address(UPLINK, plan.uplink_address, plan.uplink_prefix_length)
        route.set_link(UPLINK, up=True, mtu=plan.mtu)
        route.add_default_route(plan.uplink_gateway, UPLINK)
        route.forward_ipv4(UPLINK)

    async def _nft(self, text: str) -> None:
        async with self._inside() as inside:
            await nft.apply(text, inside)

    @asynccontextmanager
    async def _inside(self) -> AsyncIterator[NamespacePair]:
        _, descriptors = await ask(self._files.control, "namespaces", expect=2)
        try:
            yield NamespacePair(*descriptors)
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    async def _start_uplink(self) -> None:
        record = self._record
        self._set_uplink(
            await start_uplink(
                record.uplink_kind, record.plan, self.holder.pid, self._files, self._route
            )
        )

    def _set_uplink(self, identity: ProcessIdentity | None) -> None:
        self._write_down(uplink=identity)

    def _write_down(self, **changes: object) -> None:
        self._record = msgspec.structs.replace(self._record, **changes)
        write_record(self._files.record, self._record)

    async def _ask_for_uplink(self) -> None:
        """Have a routed uplink put into the namespace, and lay everything out as it says."""
        if self._uplinks is None:
            raise RuntimeError("this network has an uplink of its own")
        async with self._inside() as inside:
            found = await self._uplinks.attach(inside.network)
        plan = NetworkPlan(found.guests, found.transfer, routed=True)
        if self._record.slot and plan != self.plan:
            await self._uplinks.detach(found.slot)
            raise HolderError(
                "the network's uplink was lost, and its addresses are another's now",
                hint="banger vm stop --all, then start them again",
            )
        self._write_down(plan=plan, uplink=None, slot=found.slot)
        self._troubles.pop("outside", None)
        if found.warnings:
            self._complain("outside", "; ".join(found.warnings))

    async def _give_back(self) -> None:
        if self._uplinks is not None and self._record.slot:
            await self._uplinks.detach(self._record.slot)

    async def _guard_routed(self) -> None:
        """Have the uplink put back whenever its link is gone: whoever removed it, its guests have nothing to do with that."""
        try:
            if self._route.exists(UPLINK):
                await self._ask_for_uplink()  # the same; what it says of the host may be news
            elif proc.alive(self.holder):
                log.warning("the network's uplink is gone; it is asked for again")
                await self._ask_for_uplink()
                self._lay_out_uplink()
            self._troubles.pop("uplink", None)
        except (BangerError, OSError) as error:
            if proc.alive(self.holder) and not self._route.exists(UPLINK):
                self._complain("uplink", f"the uplink cannot be had: {error}")
            else:
                log.info("network: nothing new of the uplink: %s", error)

    async def _links_changed(self) -> None:
        if not self._route.exists(UPLINK) or "uplink" in self._troubles:
            await self._guard_routed()

    async def _guard(self) -> None:
        self._watch = AddressWatch(lambda: self._spawn(self._follow_host()))
        if self._uplinks is None:
            self._spawn(self._keep_uplink())
            return
        events = socket.socket(fileno=await ask_one(self._files.control, "route"))
        self._link_watch = AddressWatch(
            lambda: self._spawn(self._links_changed()), groups=LINK_GROUP, channel=events
        )

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name="network")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow_host(self) -> None:
        """Close the host's new addresses; if that fails, again until it succeeds."""
        while proc.alive(self.holder):
            try:
                await self._gate.renew()
            except (BangerError, OSError) as error:
                self._complain("filter", f"new addresses of the host could not be closed: {error}")
                await asyncio.sleep(_RETRY_S)
            else:
                self._troubles.pop("filter", None)
                return

    async def _keep_uplink(self) -> None:
        """Start the uplink again whenever it ends: at once, but with growing pauses if it never lives long."""
        pause_s = 0.0
        while True:
            began_ms = monotonic_ms()
            if self.uplink is not None:
                await proc.wait_gone(self.uplink)
                if not proc.alive(self.holder):
                    return
                log.warning("the network's uplink has ended; it is started again")
                if monotonic_ms() - began_ms > _SHORT_LIFE_MS:
                    pause_s = 0.0
            await asyncio.sleep(pause_s)
            pause_s = min(_MAX_PAUSE_S, pause_s * 2 + _FIRST_PAUSE_S)
            try:
                await self._start_uplink()
                self._troubles.pop("uplink", None)
            except (BangerError, OSError) as error:
                if not proc.alive(self.holder):
                    return
                self._set_uplink(None)
                self._complain("uplink", f"the uplink cannot be started: {error}")

    def _complain(self, what: str, trouble: str) -> None:
        self._troubles[what] = trouble
        log.error("network: %s", trouble)


async def _route(files: Files) -> Route:
    return Route(socket.socket(fileno=await ask_one(files.control, "route")))


async def _end_all(files: Files, holder: ProcessIdentity, uplink: ProcessIdentity | None) -> None:
    await end(uplink)
    if proc.alive(holder):
        with suppress(OSError, HolderError):
            await ask(files.control, "stop", timeout_s=1.0)
    await end(holder)
    files.forget()


async def end_leftovers(files: Files) -> None:
    """End what an earlier daemon left and nobody adopts, also if it never came to write it down."""
    record = read_record(files.record)
    if record is not None:
        await _end_all(files, record.holder, record.uplink)
    for identity in proc.find_by_argument(str(files.control)):
        await end(identity)
    files.forget()
