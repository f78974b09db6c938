"""A running network: the holder's namespace with its links, filter and uplink, and what keeps them whole.

Order matters everywhere: a TAP is up and handed out only after the filter knows its guest, and a guest's pin goes after its TAP.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncIterator, Coroutine
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
from banger.network import filter as rules
from banger.network.control import HolderError, ask, ask_one
from banger.network.filter import Network, Pin
from banger.network.host_addresses import AddressWatch, host_networks
from banger.network.plan import BRIDGE, BRIDGE_MAC, UPLINK, NetworkPlan, tap_name
from banger.network.processes import end, start_holder, start_uplink
from banger.network.record import Files, NetworkRecord, read_record, write_record
from banger.network.uplinks.client import HostUplinks

log = logging.getLogger(__name__)

UDP_SINCE = CONNECTIONS_SINCE = 2
"""Protocols of the holder with which came what it can be asked for."""
_SHORT_LIFE_MS = 2000.0
_FIRST_PAUSE_S, _MAX_PAUSE_S, _RETRY_S = 0.1, 5.0, 1.0


class Space:
    """One running network. Make it with `create` or `adopt`; `add_tap`, `remove` and `end` must not overlap (the caller has a lock)."""

    def __init__(
        self,
        files: Files,
        record: NetworkRecord,
        route: Route,
        uplinks: HostUplinks | None = None,
    ) -> None:
        self._files = files
        self._uplinks = uplinks
        self._record = record
        self._route = route
        self._pins: set[Pin] = set()
        self._host: list[Network] = []
        self._filter_lock = asyncio.Lock()
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
        cls, files: Files, plan: NetworkPlan, kind: str, uplinks: HostUplinks | None = None
    ) -> Space:
        """Start a holder and lay out everything inside; on failure nothing is left. With ``uplinks`` the plan comes with the uplink."""
        async with UndoStack() as undo:
            holder = await start_holder(files)
            undo.push("end the network's holder", lambda: _end_all(files, holder, None))
            record = NetworkRecord(holder, plan, kind)
            write_record(files.record, record)
            space = cls(files, record, await _route(files), uplinks)
            undo.push("close the network", space.close)
            if uplinks is None:
                await ask(files.control, "uplink", name=UPLINK)
            else:
                await space._ask_for_uplink()
                undo.push("give the uplink back", space._give_back)
            space._lay_out()
            await space._reset_filter()
            space._lay_out_uplink()
            if uplinks is None:
                await space._start_uplink()
            await space._guard()
            undo.release()
        return space

    @classmethod
    async def adopt(
        cls, files: Files, plan: NetworkPlan, kind: str, uplinks: HostUplinks | None = None
    ) -> Space | None:
        """Take over what an earlier daemon left, its filter renewed; None if there is nothing of use."""
        record = read_record(files.record)
        if record is None or not proc.alive(record.holder):
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
            space = cls(files, record, await _route(files), uplinks)
            undo.push("let the network go", space.close)
            space._pins = await space._listed_pins()
            await space._reset_filter()
            if record.uplink is None or not proc.alive(record.uplink):
                space._set_uplink(None)
            await space._guard()
            if uplinks is not None:
                await space._guard_routed()
            undo.release()
        return space

    def has(self, lease: Lease) -> bool:
        """Whether this guest may speak here."""
        return any(pin.fits(lease) for pin in self._pins)

    def guests(self) -> list[str]:
        """Names of the TAPs that somebody holds."""
        return self._route.ports(BRIDGE)

    async def add_tap(self, lease: Lease, *, outward: bool) -> int:
        """The descriptor of a new TAP for this lease, filtered and up; ``outward``: to the world outside too. On failure there is no TAP."""
        await self._pin(lease, outward=outward)
        tap = await ask_one(self._files.control, "tap", name=tap_name(lease))
        try:
            self._connect(lease)
        except BaseException:
            os.close(tap)
            raise
        return tap

    async def add_named_tap(self, lease: Lease, *, outward: bool) -> tuple[int, int]:
        """As `add_tap`, for a process that opens the TAP by its name: descriptors of the namespaces to do it in, the caller's."""
        await self._pin(lease, outward=outward)
        await ask(self._files.control, "uplink", name=tap_name(lease))
        try:
            self._connect(lease)
            _, (user, network) = await ask(self._files.control, "namespaces", expect=2)
        except BaseException:
            self._route.delete_link(tap_name(lease))
            raise
        return user, network

    async def _pin(self, lease: Lease, *, outward: bool) -> None:
        """Let the filter know the guest, and nobody else by its name or address; an older TAP of this name is removed."""
        name, new = tap_name(lease), Pin.of(lease, outward=outward)
        stale = {pin for pin in self._pins if pin.tap == name or pin.ip == lease.ip} - {new}
        self._route.delete_link(name)
        await self._renew_filter(rules.unpin(stale) + rules.pin([new]))
        self._pins = (self._pins - stale) | {new}

    def _connect(self, lease: Lease) -> None:
        """Make the guest's TAP a port of the bridge, and set it up."""
        name = tap_name(lease)
        self._route.set_link(name, mtu=self.plan.mtu)
        self._route.add_closed_port(BRIDGE, name)
        mac = bytes.fromhex(lease.mac.replace(":", ""))
        self._route.fix_neighbour(BRIDGE, name, mac, lease.ip)
        self._route.set_link(name, up=True)

    async def remove(self, lease: Lease) -> None:
        """Take the guest's TAP and pin away; idempotent."""
        gone = {pin for pin in self._pins if pin.tap == tap_name(lease)}
        self._route.delete_link(tap_name(lease))
        self._route.forget_neighbour(BRIDGE, lease.ip)
        if gone:
            await self._nft(rules.unpin(gone))
            self._pins -= gone
            self._spawn(self._cut(lease.ip))

    async def set_outward(self, lease: Lease, *, outward: bool) -> None:
        """Let a guest speak to the world outside, or not any more: one transaction on a set; what it had open there is cut, and soon forgotten."""
        pins = {pin for pin in self._pins if pin.fits(lease)}
        if not pins:
            raise ConnectionRefusedError(f"VM {lease.vm_id} is not in the network")
        new = Pin.of(lease, outward=outward)
        await self._renew_filter(rules.let_out(new) if outward else rules.keep_in(new))
        self._pins = (self._pins - pins) | {new}
        if not outward:
            self._spawn(self._cut(lease.ip))

    def outward(self, lease: Lease) -> bool:
        """Whether this guest may speak to the world outside."""
        return any(pin.outward for pin in self._pins if pin.fits(lease))

    async def _cut(self, address: str) -> None:
        """Forget the connections of a guest. Nobody waits for it, since the kernel looks through its whole table (10 ms), and if it fails it is
        only slower: no packet of theirs passes any more, and the kernel forgets them by time.
        """
        if self._record.protocol < CONNECTIONS_SINCE:
            return
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
        self._route.close()

    def _lay_out(self) -> None:
        plan, route = self._record.plan, self._route
        route.add_bridge(BRIDGE, BRIDGE_MAC)
        route.add_address(BRIDGE, plan.gateway, plan.prefix_length)
        route.add_address(BRIDGE, plan.dns, plan.prefix_length)
        route.set_link(BRIDGE, up=True, mtu=plan.mtu)
        route.forward_ipv4(BRIDGE)

    def _lay_out_uplink(self) -> None:
        plan, route = self._record.plan, self._route
        route.add_address(UPLINK, plan.uplink_address, plan.uplink_prefix_length)
        route.set_link(UPLINK, up=True, mtu=plan.mtu)
        route.add_default_route(plan.uplink_gateway, UPLINK)
        route.forward_ipv4(UPLINK)

    async def _reset_filter(self) -> None:
        async with self._filter_lock:
            host = host_networks()
            await self._nft(rules.ruleset(self._record.plan, self._pins, host))
            self._host = host

    async def _renew_filter(self, changes: str = "") -> None:
        """Make ``changes`` and close addresses that the host got meanwhile, in one transaction."""
        async with self._filter_lock:
            host = host_networks()
            if host != self._host:
                changes += rules.close_networks(self._record.plan, host)
            if changes:
                await self._nft(changes)
            self._host = host

    async def _nft(self, text: str) -> None:
        async with self._inside() as inside:
            await nft.apply(text, inside)

    async def _listed_pins(self) -> set[Pin]:
        async with self._inside() as inside:
            pins = await nft.elements("bridge", rules.TABLE, rules.PINS, inside)
            outward = await nft.elements("inet", rules.TABLE, rules.OUTWARD, inside)
        return rules.pins_of(pins, outward)

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
        self._record = msgspec.structs.replace(self._record, uplink=identity)
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
        self._record = msgspec.structs.replace(
            self._record, plan=plan, uplink=None, slot=found.slot
        )
        write_record(self._files.record, self._record)
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
                await self._renew_filter()
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
