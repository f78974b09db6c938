"""Uplinks on this host: making them, taking them back, and keeping host and ledger equal. Runs as root, in banger-helper or in root's bangerd.

An uplink is a pair of links, one of which lies in the namespace that asked; the kernel removes both with that namespace, which is heard of
by netlink. So is every change of the host's nft tables: a firewall that is loaded anew begins with ``flush ruleset`` on many hosts, which would leave
guests without a way out, and the host without its filter. The ledger says first what is about to be made. What has our names but is not in the
ledger is somebody else's: refused, not touched.
"""

from __future__ import annotations

import asyncio
import ipaddress
import logging
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from banger.host import fs, nft, ownership
from banger.host.ledger import Ledger, Row
from banger.host.locks import FileLock
from banger.host.netlink import ADDRESS_GROUPS, LINK_GROUP, NETCONF_GROUP, NetlinkError, Route
from banger.host.ownership import NamespaceId
from banger.host.undo import UndoStack
from banger.model.errors import BangerError, NotFoundError, RefusedError
from banger.network.host_addresses import AddressWatch, watch_nftables
from banger.network.uplinks import forwarding, table
from banger.network.uplinks.obstacles import find_obstacles
from banger.network.uplinks.relay import NameRelay, open_relay
from banger.network.uplinks.resolvers import find_resolver, on_loopback
from banger.network.uplinks.slots import PEER, TRANSFER_LENGTH, Slot, SlotPlan
from banger.network.uplinks.table import Rules, Uplink

log = logging.getLogger(__name__)
KIND = "uplink"
Chains = Sequence[Any]
MTU = 1500
QUOTA = 4
_PAUSE_S = 1.0
"""From one look at changes of nft's to the next: somebody may make them all the time, even undo ours."""
_GROUPS = ADDRESS_GROUPS | LINK_GROUP | NETCONF_GROUP


@dataclass(frozen=True, slots=True)
class Attached:
    """An uplink as its owner is told of it. ``warnings``: what keeps its guests from the outside, as far as we know."""

    slot: int
    uid: int
    link: str
    guests: str
    transfer: str
    mtu: int = MTU
    resolver: str = ""
    warnings: tuple[str, ...] = ()


class UplinkService:
    """All uplinks of this host. One process has it at a time; ``directory`` is that process's own, private."""

    def __init__(
        self,
        directory: Path,
        plan: SlotPlan,
        *,
        quota: int = QUOTA,
        resolver: Callable[[], str] = find_resolver,
    ) -> None:
        self._directory = directory
        self._plan = plan
        self._quota = quota
        self._resolver = resolver
        self._lock = asyncio.Lock()
        self._file_lock = FileLock(directory / "lock")
        self._ledger: Ledger | None = None
        self._applied: Rules | None = None
        self._text = ""
        self._watches: list[AddressWatch] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._relays: dict[str, NameRelay] = {}
        self._asked = ""

    @property
    def directory(self) -> Path:
        """Where the ledger is."""
        return self._directory

    @property
    def started(self) -> bool:
        """Whether this process has the uplinks."""
        return self._ledger is not None

    @property
    def ledger(self) -> Ledger:
        """The ledger, once started."""
        if self._ledger is None:
            raise RuntimeError("the service is not started")
        return self._ledger

    async def start(self) -> None:
        """Take the ledger, bring host and ledger together, and follow the host's changes from now on."""
        if self._ledger is not None:
            return
        fs.make_private_dir(self._directory)
        self._file_lock.take_service("uplinks")
        try:
            self._ledger = Ledger(self._directory / "ledger.json")
            # Before the first look: what changes after that is heard.
            self._watches.append(AddressWatch(self._host_changed, groups=_GROUPS))
            self._watches.append(watch_nftables(self._host_changed, pause_s=_PAUSE_S))
            async with self._lock:
                await self._reconcile()
        except BaseException:
            await self.close()
            raise

    async def close(self) -> None:
        """Let go: uplinks live on. Idempotent."""
        while self._watches:
            self._watches.pop().close()
        tasks = set(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)
        for address in list(self._relays):
            await self._relays.pop(address).close()
        self._ledger = self._applied = None
        self._file_lock.release()

    async def attach(self, uid: int, namespace: int) -> Attached:
        """Give the network namespace behind descriptor ``namespace``, which must be ``uid``'s, its uplink; the one that it has if it has one."""
        where = ownership.check_owner(namespace, uid)
        async with self._lock:
            chains = await self._reconcile()
            rows = self.ledger.rows(KIND)
            slot = next((_slot(r) for r in rows if (_place(r), r.uid) == (where, uid)), None)
            if slot is None:
                slot = self._free_slot(uid)
                await self._make(slot, uid, namespace, where, chains)
        return await self._told(slot, uid, chains)

    async def detach(self, uid: int, number: int) -> None:
        """Take an uplink of ``uid``'s back; idempotent. Root may take everybody's."""
        async with self._lock:
            await self._reconcile()
            row = next((r for r in self.ledger.rows(KIND) if r.key == str(number)), None)
            if row is None:
                return
            if uid not in {0, row.uid}:
                raise NotFoundError(f"no uplink {number} of yours", hint="banger daemon status")
            self._unmake(row)
            await self._renew()

    async def list(self, uid: int) -> list[Attached]:
        """The uplinks of ``uid``'s; for root everybody's."""
        async with self._lock:
            await self._reconcile()
            rows = [row for row in self.ledger.rows(KIND) if uid in {0, row.uid}]
        return [self._attached(_slot(row), row.uid) for row in rows]

    async def reconcile(self) -> None:
        """Bring host and ledger together."""
        async with self._lock:
            await self._reconcile()

    # Making and unmaking; the caller has the lock

    def _free_slot(self, uid: int) -> Slot:
        rows = self.ledger.rows(KIND)
        if sum(row.uid == uid for row in rows) >= self._quota:
            raise RefusedError(
                f"user {uid} has {self._quota} uplinks already",
                detail="that is the quota of a user",
                hint="end a daemon that you do not need: banger daemon stop",
            )
        with Route.here() as route:
            links = route.links()
            names = {_slot(row).link for row in rows}  # the kernel may have removed one just now
            ours = {link.index for name, link in links.items() if name in names}
            routes = [(a, length) for a, length, link in route.routes() if link not in ours]
            own = {_slot(row).host_address for row in rows}
            routes = [(a, length) for a, length in routes if a not in own]
        self._plan.check_free(routes)
        slot = self._plan.choose((int(row.key) for row in rows), uid)
        if slot.link in links:
            raise RefusedError(
                f"there is a link {slot.link} that is not banger's",
                detail="banger names its own so, and touches nobody else's",
                hint=f"ip link show {slot.link}",
            )
        return slot

    async def _make(
        self, slot: Slot, uid: int, namespace: int, where: NamespaceId, chains: Chains
    ) -> None:
        facts: dict[str, int | str] = {
            "device": where.device,
            "inode": where.inode,
            "guests": slot.guests,
            "transfer": slot.transfer,
        }
        async with UndoStack() as undo:
            row = self.ledger.intend(KIND, str(slot.number), uid, **facts)
            undo.push("take the uplink back", lambda: self._take_back(row))
            with Route.here() as route:
                mac = slot.mac(self.ledger.token)
                try:
                    route.add_veth(slot.link, mac, PEER, namespace, mtu=MTU)
                except NetlinkError as error:
                    raise RefusedError(
                        "the namespace cannot be given an uplink",
                        detail=str(error),
                        hint=f"has it a link {PEER} already? ip link",
                    ) from error
                await self._renew(chains)  # the filter knows the link before it is up
                route.disable_ipv6(slot.link)
                route.add_address(slot.link, slot.host_address, TRANSFER_LENGTH)
                route.set_link(slot.link, up=True)
                route.forward_ipv4(slot.link)
                guests = ipaddress.IPv4Network(slot.guests)
                network = (str(guests.network_address), guests.prefixlen)
                route.add_route(network, slot.inside_address, slot.link, source=slot.host_address)
            self.ledger.done(row)
            undo.release()
        await self._renew(chains)  # the gateway's address is there by now: names can be relayed
        log.info("uplink %d made for user %d: %s", slot.number, uid, slot.guests)

    async def _take_back(self, row: Row) -> None:
        self._unmake(row)
        await self._renew()

    def _unmake(self, row: Row) -> None:
        """Remove the link if it is ours, and strike the row; idempotent."""
        slot = _slot(row)
        with Route.here() as route:
            link = route.links().get(slot.link)
            if link is not None and link.mac == slot.mac(self.ledger.token):
                route.delete_link(slot.link)
        self.ledger.strike(row)

    async def _reconcile(self) -> Chains:
        """Undo what is not whole; the chains of the host's nft afterwards."""
        with Route.here() as route:
            links = route.links()
        for row in self.ledger.rows(KIND):
            slot = _slot(row)
            link = links.get(slot.link)
            there = link is not None and link.mac == slot.mac(self.ledger.token)
            if not (there and row.done and row.this_boot):
                self._unmake(row)
        return await self._renew()

    async def _renew(self, chains: Chains | None = None) -> Chains:
        """Make table and forwarding what the ledger says, in one transaction, if they are not known to be that.

        ``chains``: those of the host's nft, if they were just asked for; they are returned.
        """
        rows = self.ledger.rows(KIND)
        chains = await nft.listing("chain", "chains") if chains is None else chains
        maker = table.made_by(chains)
        if maker not in {None, self.ledger.token}:
            if not rows and self._applied is None:
                return chains  # somebody else's, and we have no need of one
            raise RefusedError(
                f"table {table.FAMILY} {table.TABLE} is not banger's",
                detail="banger names its own so, and touches nobody else's",
                hint=f"sudo nft list table {table.FAMILY} {table.TABLE}",
            )
        with Route.here() as route:
            own = [_slot(row).link for row in rows if row.done]
            opened = forwarding.open_links(self.ledger, route, own) if rows else ()
            uplinks = tuple(Uplink(_slot(row), row.uid) for row in rows)
            resolver = self._resolver() if rows else ""
            rules = Rules(self.ledger.token, uplinks, resolver, opened)
            if rules != self._applied or await self._tampered(rules, maker):
                await nft.apply(table.ruleset(rules))
                self._applied, self._text = rules, await nft.text(table.FAMILY, table.TABLE)
            if not rows:
                forwarding.close_links(self.ledger, route)
        await self._renew_relays(resolver, {each.slot.host_address for each in uplinks})
        return chains

    async def _tampered(self, rules: Rules, maker: str | None) -> bool:
        """Whether the host's table is not what we left, though ``rules`` are."""
        if not rules.uplinks:
            return maker is not None
        if await nft.text(table.FAMILY, table.TABLE) == self._text:
            return False
        log.warning("uplinks: somebody changed table %s of the host; it is made anew", table.TABLE)
        return True

    async def _renew_relays(self, resolver: str, gateways: set[str]) -> None:
        """Relay questions for names at the gateways that have their address already, if that is the only way to the host's resolver."""
        wanted = gateways if on_loopback(resolver) else set()
        for address in [a for a in self._relays if a not in wanted or resolver != self._asked]:
            await self._relays.pop(address).close()
        self._asked = resolver
        with Route.here() as route:
            there = {address for address, _ in route.local_networks()}
        for address in wanted & there - self._relays.keys():
            relay = open_relay(address, resolver)
            if relay is not None:
                self._relays[address] = relay

    # Telling

    def _attached(self, slot: Slot, uid: int) -> Attached:
        resolver = self._applied.resolver if self._applied else ""
        return Attached(slot.number, uid, slot.link, slot.guests, slot.transfer, resolver=resolver)

    async def _told(self, slot: Slot, uid: int, chains: Chains) -> Attached:
        found = self._attached(slot, uid)
        warnings = []
        if not found.resolver:
            warnings.append(
                "guests resolve no names: this host has no name server with an IPv4 address;"
                " to mend it: name one in /etc/resolv.conf"
            )
        with suppress(BangerError):  # what others' tables hold is a courtesy to say
            warnings += [obstacle.sentence for obstacle in await find_obstacles(chains)]
        return Attached(
            found.slot, uid, found.link, found.guests, found.transfer,
            resolver=found.resolver, warnings=tuple(warnings),
        )  # fmt: skip

    # Following the host

    def _host_changed(self) -> None:
        self._spawn(self._follow_host())

    def _spawn(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work, name="uplinks")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _follow_host(self) -> None:
        try:
            await self.reconcile()
        except (BangerError, OSError) as error:
            log.warning("uplinks: the host has changed and could not be followed: %s", error)


def _slot(row: Row) -> Slot:
    """As it was given, whatever the prefix is by now."""
    return Slot(int(row.key), str(row.facts["guests"]), str(row.facts["transfer"]))


def _place(row: Row) -> NamespaceId:
    return NamespaceId(int(row.facts["device"]), int(row.facts["inode"]))
