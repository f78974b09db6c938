"""The network without privilege: `engine.ports.Network` over a holder's namespace, or over QEMU's own where there can be none.

See docs/explanation/network.md.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import ClassVar, TypeVar

from banger.host import fs, proc
from banger.host.exec import find_program
from banger.host.namespaces import probe_namespaces
from banger.host.probe import Answer
from banger.model.errors import BangerError, HostLacksError, InvalidInputError
from banger.model.lease import Lease, Traffic
from banger.model.machine import NetworkAttachment
from banger.model.process import ProcessIdentity
from banger.model.residue import NetworkSurvey, Stray
from banger.model.spec import ForwardProtocol, NetworkMode
from banger.network import filter as rules
from banger.network.control import HolderError
from banger.network.plan import NetworkPlan, tap_name
from banger.network.processes import UPLINKS, end, find_strays
from banger.network.record import Files
from banger.network.space import Space, end_leftovers

log = logging.getLogger(__name__)
_T = TypeVar("_T")
GuestLookup = Callable[[str, str, str], Sequence[str] | None]
"""As `guest_names.PeerLookup`, with the network's mode before the guest's address."""
GuestFlooded = Callable[[str, str], None]
"""As `guest_names.Flooded`, with the network's mode before the guest's address."""

DIAL_S = 10.0
LINGER_S = 30.0
DYING_S = 2.0
_ALONE = "QEMU's own network has one guest: groups lead nowhere."
DIED = "the network's holder died: VMs that ran then have no network until they are restarted"


class UserNetwork:
    """A network of one daemon; see `engine.ports.Network`. Files: ``runtime_dir/net/``, and two logs in ``log_dir``."""

    mode: ClassVar[NetworkMode] = NetworkMode.USER

    def __init__(
        self,
        runtime_dir: Path,
        log_dir: Path,
        *,
        uplink: str = "slirp4netns",
        plan: NetworkPlan | None = None,
        pool: int = 0,
    ) -> None:
        """``uplink``: slirp4netns or pasta; InvalidInputError for others. ``pool``: so many TAPs are made ahead. Touches nothing yet."""
        if uplink not in UPLINKS:
            raise InvalidInputError(
                f"uplink {uplink!r} is not known",
                detail=f"it must be one of {', '.join(UPLINKS)}",
                hint="banger config show",
            )
        self._files = Files(runtime_dir, log_dir)
        self._kind = uplink
        self._pool = pool
        self._lookup: GuestLookup | None = None
        self._flooded: GuestFlooded = lambda _mode, _address: None
        self._plan = plan or NetworkPlan()
        self._lock = asyncio.Lock()
        self._space: Space | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._probe: asyncio.Task[Answer] | None = None
        self._linger: asyncio.Task[None] | None = None
        self._trouble = ""

    def answer_names(self, lookup: GuestLookup, flooded: GuestFlooded | None = None) -> None:
        """Tell guests the names that ``lookup`` knows for them, and ``flooded`` who asks too often. To be called before `start`."""
        self._lookup = lookup
        self._flooded = flooded or self._flooded

    async def start(self) -> None:
        """Adopt the network of an earlier daemon; if there is none begin to find out, beside other work, what this host allows."""
        if not await self._taken_over():
            self._probe = self._begin_probe()

    async def _taken_over(self) -> bool:
        """Make the directories and adopt the network of an earlier daemon, else end what is left of it; whether there is one."""
        fs.make_private_dir(self._files.directory)
        fs.make_private_dir(self._files.logs)
        async with self._lock:
            if await self._adopt() is None and not self._trouble:
                await end_leftovers(self._files)
        return self._space is not None

    def plan_lease(self, vm_id: str, taken: Sequence[Lease]) -> Lease:
        """A free lease; see `NetworkPlan.plan_lease`."""
        return self._plan.plan_lease(vm_id, taken)

    async def attach(
        self,
        lease: Lease,
        mode: str,
        *,
        named: bool,
        outward: bool = True,
        groups: Sequence[str] = (),
    ) -> NetworkAttachment:
        """A TAP inside, or what else ``mode`` and this host lead to. Without a working filter there is no TAP.

        Without ``outward`` the guest reaches nothing but its gateway, and those who share one of its ``groups``; forwards lead to it all the same.

        With ``named`` it is not open but waits in the namespaces of the attachment for a VMM that opens it by name; no such VMM has a
        network of its own.

        Where there can be no namespace, ``auto`` falls back to QEMU's own user network, with a warning; ``user`` does not.
        """
        if mode == "none":
            return NetworkAttachment("none", None)
        lacks = await self._lacks()
        if lacks is not None and (mode == self.mode or named):
            raise HostLacksError(
                "this host allows no network of banger's own", detail=lacks.why, hint=lacks.hint
            )
        if lacks is not None:
            warnings = (_open_to_host(lacks) if outward else "", _ALONE if groups else "")
            return NetworkAttachment("qemu-user", lease, warning=" ".join(filter(None, warnings)))
        async with self._lock:
            if named:
                inside = await self._on_tap(
                    lease, lambda space: space.add_named_tap(lease, outward=outward, groups=groups)
                )
                return self._attachment(lease, namespaces=inside)
            tap = await self._on_tap(
                lease, lambda space: space.add_tap(lease, outward=outward, groups=groups)
            )
        return self._attachment(lease, tap_fd=tap)

    def _attachment(
        self,
        lease: Lease,
        *,
        tap_fd: int | None = None,
        namespaces: tuple[int, int] | None = None,
    ) -> NetworkAttachment:
        plan = self._space.plan if self._space is not None else self._plan
        return NetworkAttachment(
            self.mode, lease, tap_fd, tap_name(lease), namespaces=namespaces, mtu=plan.mtu
        )

    async def settle(self, lease: Lease, mode: str) -> tuple[Lease, int | None]:
        """The lease with this network's addresses, and the MTU of its guests' links; see `engine.ports.Network`."""
        if mode == "none":
            return lease, None
        planned = self._plan.readdressed(lease)
        return planned, None if await self._lacks() is not None else self._plan.mtu

    def has(self, lease: Lease) -> bool:
        """Whether this guest may speak here."""
        return self._space is not None and self._space.has(lease)

    def adopted(self, lease: Lease) -> None:
        """A VM that runs since before this daemon holds this lease; that its TAP and pin are there is looked up, not believed."""
        if not self.has(lease):
            self._trouble = DIED
            log.error("VM %s: %s", lease.vm_id, DIED)

    async def detach(self, lease: Lease) -> None:
        """Take TAP and filter entries back; idempotent. After the last VM the network lingers a little."""
        async with self._lock:
            space = self._space
            if space is None:
                return
            try:
                await space.remove(lease)
                unused = not space.guests()
            except (OSError, BangerError):
                if proc.alive(space.holder):
                    raise
                return
            if unused:
                self._begin_linger()

    async def set_outward(self, lease: Lease, *, outward: bool) -> None:
        """Let a guest that runs out into the world, or not any more; idempotent. HostLacksError if it has no place in the network."""
        async with self._lock:
            space = self._space_of(lease)
            if space.outward(lease) != outward:
                await space.set_outward(lease, outward=outward)

    async def set_groups(self, lease: Lease, groups: Sequence[str]) -> None:
        """Let a guest that runs reach those who share a group with it, and no others; idempotent. HostLacksError as above."""
        async with self._lock:
            await self._space_of(lease).set_groups(lease, groups)

    def traffic(self, lease: Lease) -> Traffic | None:
        """What the guest sent and received since it was attached; None of one that is not here."""
        if self._space is None or not self._space.has(lease):
            return None
        return proc.traffic(self._space.holder.pid, tap_name(lease))

    def _space_of(self, lease: Lease) -> Space:
        if self._space is None or not self._space.has(lease):
            raise HostLacksError(
                f"VM {lease.vm_id} has no network any more",
                detail=self._trouble,
                hint="restart it: banger vm restart NAME",
            )
        return self._space

    async def dial(
        self, lease: Lease, port: int, *, protocol: ForwardProtocol = ForwardProtocol.TCP
    ) -> socket.socket:
        """A connected non-blocking socket to ``port`` of the guest; OSError if nobody answers within 10 s (TCP)."""
        space = self._space
        if space is None or not space.has(lease):
            raise ConnectionRefusedError(f"VM {lease.vm_id} is not in the network")
        stream = protocol is ForwardProtocol.TCP
        try:
            opened = await (space.tcp_socket() if stream else space.udp_socket())
        except HolderError as error:
            raise ConnectionError(error.what) from error
        try:
            if stream:
                opened.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            async with asyncio.timeout(DIAL_S):
                await asyncio.get_running_loop().sock_connect(opened, (lease.ip, port))
        except BaseException:
            opened.close()
            raise
        return opened

    async def survey(self, leases: Callable[[], Sequence[Lease]]) -> NetworkSurvey:
        """See `engine.ports.Network`. TAPs of the pool are kept ready; a process is judged when it is old enough to have been written down.

        A lease is there before its TAP is made, under the lock, so that no TAP is taken for one without.
        """
        async with self._lock:
            space = self._space
            held = frozenset(space.guests()) if space and proc.alive(space.holder) else frozenset()
            taps = {tap_name(lease): lease for lease in leases()}
            attached = {each.vm_id for name, each in taps.items() if name in held or self.has(each)}
            processes = await self._stray_processes()
        links = [Stray(name) for name in sorted(held - set(taps))]
        return NetworkSurvey(frozenset(attached), (*links, *processes))

    async def _stray_processes(self) -> list[Stray]:
        known = {self._space.holder, self._space.uplink} if self._space else set()
        return await asyncio.to_thread(find_strays, self._files, known)

    async def end_stray(self, stray: Stray, leases: Callable[[], Sequence[Lease]]) -> None:
        """Idempotent."""
        async with self._lock:
            if stray.process is not None:
                if stray in await self._stray_processes():
                    await end(stray.process)
            elif self._space is not None and stray.name not in map(tap_name, leases()):
                self._space.taps.drop(stray.name)

    async def describe(self) -> Mapping[str, str]:
        """``mode`` (user, qemu-user) and ``detail``, with what is wrong if anything is."""
        lacks = await self._lacks()
        if lacks is not None:
            return {"mode": "qemu-user", "detail": _open_to_host(lacks)}
        space = self._space
        running = f"namespace of pid {space.holder.pid}" if space else "not started"
        trouble = self._trouble or (space.trouble if space else "")
        return {
            "mode": self.mode,
            "detail": ", ".join(filter(None, (self._kind, running, trouble))),
        }

    async def stop(self, *, if_unused: bool = True) -> None:
        """End holder and uplink; with ``if_unused`` only if nobody has a TAP."""
        async with self._lock:
            space = self._space
            if space is None or (if_unused and space.guests()):
                return
            await self._let_go()
            await space.end()

    async def close(self) -> None:
        """Let go; what VMs use lives on, what nobody uses ends."""
        with suppress(OSError, BangerError):
            await self.stop()
        async with self._lock:
            await self._let_go()
        for task in (self._probe, self._linger):
            if task is not None:
                task.cancel()
                await asyncio.wait({task})
        self._probe = self._linger = None

    def _begin_probe(self) -> asyncio.Task[Answer]:
        return self._probe or asyncio.create_task(self._ask_host(), name="network probe")

    async def _ask_host(self) -> Answer:
        try:
            find_program(self._kind, package=UPLINKS[self._kind])
        except HostLacksError as error:
            return Answer(ok=False, why=error.what, hint=error.hint)
        return await asyncio.to_thread(probe_namespaces, rules.ruleset(self._plan, (), ()))

    async def _lacks(self) -> Answer | None:
        """Why there can be no namespace here; None if there can be, or is. A host that lacked something is asked again each time."""
        if self._space is not None:
            return None
        self._probe = self._begin_probe()
        answer = await asyncio.shield(self._probe)
        if answer.ok:
            return None
        self._probe = None
        return answer

    async def _on_tap(self, lease: Lease, add: Callable[[Space], Awaitable[_T]]) -> _T:
        """``add`` a TAP to the running network, or to a new one if its holder has died."""
        space = await self._up()
        try:
            return await add(space)
        except (OSError, BangerError) as error:
            if not await _ends(space.holder):
                raise _no_tap(lease, error) from error
        log.error("network: %s", DIED)
        try:
            return await add(await self._renew())
        except (OSError, BangerError) as error:
            raise _no_tap(lease, error) from error

    async def _up(self) -> Space:
        """The running network: as it is, adopted after all, or a new one."""
        if self._space is not None and proc.alive(self._space.holder):
            return self._space
        adopted = await self._adopt() if self._space is None else None
        return adopted or await self._renew()

    async def _adopt(self) -> Space | None:
        self._trouble = ""
        try:
            space = await self._find_space()
        except (BangerError, OSError, ValueError) as error:
            self._trouble = f"the network of an earlier daemon could not be adopted: {error}"
            log.exception("network: it could not be adopted")
            return None
        if space is not None:
            await self._take(space)
        return space

    async def _renew(self) -> Space:
        """A network in place of one that is gone or was never there."""
        await self._let_go()
        await end_leftovers(self._files)
        space = await self._make_space()
        await self._take(space)
        return space

    async def _find_space(self) -> Space | None:
        return await Space.adopt(self._files, self._plan, self._kind, pool=self._pool)

    async def _make_space(self) -> Space:
        return await Space.create(self._files, self._plan, self._kind, pool=self._pool)

    async def _take(self, space: Space) -> None:
        self._space = space
        self._trouble = ""
        self._watcher = asyncio.create_task(self._watch(space), name="network holder")
        if self._lookup is not None:
            await space.serve_names(
                functools.partial(self._lookup, self.mode),
                functools.partial(self._flooded, self.mode),
            )

    async def _let_go(self) -> None:
        watcher, self._watcher = self._watcher, None
        if watcher is not None:
            watcher.cancel()
            await asyncio.wait({watcher})
        space, self._space = self._space, None
        if space is not None:
            await space.close()

    async def _watch(self, space: Space) -> None:
        await proc.wait_gone(space.holder)
        async with self._lock:
            if self._space is not space:
                return
            self._space, self._watcher, self._trouble = None, None, DIED
            log.error("network: %s", DIED)
            await space.close()
            with suppress(OSError, BangerError):
                await end_leftovers(self._files)

    def _begin_linger(self) -> None:
        if self._linger is not None:
            self._linger.cancel()
        self._linger = asyncio.create_task(self._stop_later(), name="network linger")

    async def _stop_later(self) -> None:
        """The network stays a little after the last VM: the next one starts faster."""
        await asyncio.sleep(LINGER_S)
        await self.stop()


async def _ends(holder: ProcessIdentity) -> bool:
    """Whether the holder is gone, or about to be: a process that is killed closes its sockets some time before it has ended."""
    try:
        async with asyncio.timeout(DYING_S):
            await proc.wait_gone(holder)
    except TimeoutError:
        return False
    return True


def _no_tap(lease: Lease, error: OSError | BangerError) -> BangerError:
    detail = error.detail if isinstance(error, BangerError) else ""
    return HostLacksError(
        f"VM {lease.vm_id} got no network: {error}",
        detail=detail,
        hint="run the VM without a network: --network none",
    )


def _open_to_host(lacks: Answer) -> str:
    hint = f" To change that: {lacks.hint}" if lacks.hint else ""
    return (
        f"QEMU's own user network, because there can be no namespace ({lacks.why}): the guest can reach services on this host, "
        f"also those that listen on 127.0.0.1 only.{hint}"
    )
