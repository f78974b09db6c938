"""What the filter of one network holds, as this daemon knows it, and the transactions that change it.

A number's TAP, MAC and address are known before there is a VM, so its pin is in force before its TAP is: in a filter without links nobody
speaks by it. What a VM needs besides (no way outside, peers, the MAC of an older lease) is one transaction before its TAP is up.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable

from banger.host import nft
from banger.host.namespaces import NamespacePair
from banger.model.lease import Lease
from banger.network import filter as rules
from banger.network.filter import Network, Pair, Pin
from banger.network.host_addresses import host_networks
from banger.network.plan import NetworkPlan, tap_name

PREPARED = 256
"""So many numbers are pinned from the start, and others in blocks of as many: nft takes no longer for that than for one."""


class Gate:
    """One filter. ``apply`` runs a text as one transaction in the network's namespace. Changes of guests must not overlap (the caller has a lock)."""

    def __init__(self, apply: Callable[[str], Awaitable[None]]) -> None:
        self._apply = apply
        self._plan = NetworkPlan()
        self._pins: dict[str, Pin] = {}
        self._guests: set[str] = set()
        self._peers: set[Pair] = set()
        self._groups: dict[str, frozenset[str]] = {}
        self.host: list[Network] = []
        self._lock = asyncio.Lock()

    async def read(self, inside: NamespacePair, taps: Iterable[str]) -> None:
        """Know what an earlier daemon left; ``taps`` are there. A filter of an older banger has no peers."""
        bridge = await nft.elements("bridge", rules.TABLE, inside)
        inet = await nft.elements("inet", rules.TABLE, inside)
        pins = rules.pins_of(bridge[rules.PINS], inet[rules.OUTWARD])
        self._pins = {pin.tap: pin for pin in pins}
        self._peers = rules.peers_of(bridge.get(rules.PEERS, ()))
        self._guests = set(taps) & self._pins.keys()

    async def reset(self, plan: NetworkPlan) -> None:
        """Make the whole filter anew, for this plan and for what is known."""
        self._plan = plan
        self._pins = {**self._block(0), **self._pins}
        async with self._lock:
            host = host_networks()
            await self._apply(rules.ruleset(plan, self._pins.values(), host, self._peers))
            self.host = host

    async def renew(self, changes: str = "") -> None:
        """Make ``changes`` and close addresses that the host got meanwhile, in one transaction; none if there is nothing to change."""
        async with self._lock:
            host = host_networks()
            if host != self.host:
                changes += rules.close_networks(self._plan, host)
            if changes:
                await self._apply(changes)
            self.host = host

    def has(self, lease: Lease) -> bool:
        """Whether this guest is in."""
        pin = self._pins.get(tap_name(lease))
        return pin is not None and pin.tap in self._guests and pin.fits(lease)

    def outward(self, lease: Lease) -> bool:
        """Whether this guest may speak to the world outside."""
        return self.has(lease) and self._pins[tap_name(lease)].outward

    async def let_in(self, lease: Lease, *, outward: bool, groups: Iterable[str] = ()) -> None:
        """Let the guest speak as what it is, and nobody else by its name or address. Its TAP may be up afterwards, not before."""
        new = Pin.of(lease, outward=outward)
        changes, pins = "", self._pins
        if pins.get(new.tap) != new:
            stale = {pin for pin in pins.values() if new.tap == pin.tap or new.ip == pin.ip}
            kept = {tap: pin for tap, pin in pins.items() if pin not in stale}
            pins = {**self._block(lease.index), **kept, new.tap: new}
            fresh = [pin for tap, pin in pins.items() if tap not in kept]
            changes = rules.unpin(stale - {new}) + rules.pin(fresh)
        apart = {pair for pair in self._peers if lease.ip in pair}
        together = self._pairs(lease.ip, frozenset(groups))
        changes += rules.keep_apart(apart - together) + rules.let_speak(together - apart)
        await self.renew(changes)
        self._pins, self._peers = pins, (self._peers - apart) | together
        self._guests.add(new.tap)
        self._groups[lease.ip] = frozenset(groups)

    async def let_go(self, lease: Lease) -> bool:
        """The guest's TAP is gone: whether it was in. What it was to others is forgotten; idempotent."""
        apart = {pair for pair in self._peers if lease.ip in pair}
        if apart:
            await self.renew(rules.keep_apart(apart))
            self._peers -= apart
        self._groups.pop(lease.ip, None)
        was_in = tap_name(lease) in self._guests
        self._guests.discard(tap_name(lease))
        return was_in

    async def set_outward(self, lease: Lease, *, outward: bool) -> None:
        """Let a guest that is in speak to the world outside, or not any more: one transaction on a set."""
        new = Pin.of(lease, outward=outward)
        await self.renew(rules.let_out(new) if outward else rules.keep_in(new))
        self._pins[new.tap] = new

    async def set_groups(self, lease: Lease, groups: Iterable[str]) -> None:
        """Let a guest that is in reach those in a group of its, and no others: one transaction on two sets.

        Whom nobody has told about since this daemon began stays its peer until it is told.
        """
        mine = frozenset(groups)
        known = {pair for pair in self._peers if lease.ip in pair and self._told(pair, lease.ip)}
        wanted = self._pairs(lease.ip, mine)
        changes = rules.keep_apart(known - wanted) + rules.let_speak(wanted - self._peers)
        if changes:
            await self.renew(changes)
        self._peers = (self._peers - known) | wanted
        self._groups[lease.ip] = mine

    def _told(self, pair: Pair, address: str) -> bool:
        return all(each == address or each in self._groups for each in pair)

    def _pairs(self, address: str, groups: frozenset[str]) -> set[Pair]:
        others = (ip for ip, theirs in self._groups.items() if ip != address and groups & theirs)
        return {pair for other in others for pair in ((address, other), (other, address))}

    def _block(self, index: int) -> dict[str, Pin]:
        """The pins of the block of numbers in which this one is."""
        first = index - index % PREPARED
        numbers = range(first, min(first + PREPARED, self._plan.capacity))
        pins = (Pin.of(self._plan.lease("", number), outward=True) for number in numbers)
        return {pin.tap: pin for pin in pins}
