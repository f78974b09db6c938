"""The network of one daemon, without any privilege: namespace, bridge, TAPs, filter, uplink. See docs/explanation/network.md.

Where this host refuses user namespaces (or lacks nft or the uplink), VMs get QEMU's own user network, and a warning says what the guest can
then reach.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path

from banger.host import proc
from banger.host.exec import find_program
from banger.model.errors import BangerError, HostLacksError
from banger.model.lease import Lease
from banger.model.machine import NetworkAttachment
from banger.network import filter as rules
from banger.network.namespace import HolderClient, host_addresses
from banger.network.plan import plan_lease, tap_name
from banger.network.uplink import Uplink, check_kind

log = logging.getLogger(__name__)
DIAL_S = 5.0
ADDRESSES_EVERY_S = 5.0
REPAIR_PAUSE_S = 0.2
LINGER_S = 30.0
WARNING = (
    "this VM has QEMU's own user network: its guest can reach services on this host's loopback and other addresses "
    "(no user namespaces here: {why})"
)


class UserNetwork:
    """See `engine.ports.Network`."""

    def __init__(self, runtime_dir: Path, log_dir: Path, *, uplink: str = "slirp4netns") -> None:
        self._dir = runtime_dir / "net"
        self._logs = log_dir
        self._kind = uplink
        self._holder: HolderClient | None = None
        self._uplink = Uplink(uplink, self._dir, log_dir / "uplink.log")
        self._lock = asyncio.Lock()
        self._tasks: set[asyncio.Task[None]] = set()
        self._attached: dict[str, Lease] = {}
        self._known_addresses: set[str] = set()
        self._why_not: str | None = None

    async def start(self) -> None:
        """Adopt what an earlier daemon left. Nothing is started before the first VM needs it."""
        self._holder = await HolderClient.adopt(self._dir)
        if self._holder is not None:
            if not self._uplink.adopt():
                await self._uplink.start(self._holder)
            await self._refresh_addresses(force=True)
            self._watch()

    def plan_lease(self, vm_id: str, taken: Sequence[Lease]) -> Lease:
        """A free lease."""
        return plan_lease(vm_id, taken)

    async def attach(self, lease: Lease, mode: str) -> NetworkAttachment:
        """A TAP with its filter entry, or the fallback with its warning."""
        if mode == "none":
            return NetworkAttachment("none", None)
        if mode == "bridge":
            raise HostLacksError(
                "network mode bridge needs banger-helper, which is not built yet",
                hint="leave --network out, or: --network user",
            )
        try:
            holder = await self._up()
        except BangerError as error:
            if mode == "user":
                raise
            self._why_not = " ".join(filter(None, (error.what, error.detail)))
            log.warning("no namespace network: %s", self._why_not)
            return NetworkAttachment("qemu-user", lease, warning=WARNING.format(why=self._why_not))
        await self._refresh_addresses()
        await holder.nft(rules.admit(lease))
        try:
            tap = await holder.ask("tap", name=tap_name(lease.vm_id))
        except OSError as error:
            await holder.nft(rules.dismiss(lease))
            raise HostLacksError(
                "a TAP cannot be made", detail=str(error), hint="see: banger daemon logs"
            ) from error
        self._attached[lease.vm_id] = lease
        return NetworkAttachment("user", lease, tap_fd=tap, tap_name=tap_name(lease.vm_id))

    async def _up(self) -> HolderClient:
        """The holder, with filter and uplink; started if need be. Fails closed: without the filter there is no TAP."""
        async with self._lock:
            if self._holder is not None:
                return self._holder
            for program, package in (("nft", "nftables"), ("nsenter", "util-linux")):
                find_program(program, package=package)
            check_kind(self._kind)
            holder = await HolderClient.start(self._dir, self._logs / "holder.log")
            try:
                self._known_addresses = host_addresses()
                uplink = asyncio.create_task(self._uplink.start(holder))
                try:
                    await holder.nft(rules.ruleset(self._known_addresses))
                finally:
                    await asyncio.wait({uplink})
                uplink.result()
            except BaseException:
                await self._uplink.end()
                await holder.end()
                raise
            self._holder = holder
            self._why_not = None
            self._watch()
            return holder

    def _watch(self) -> None:
        for work in (self._repair_uplink, self._follow_addresses, self._notice_holder):
            self._spawn(work)

    def _spawn(self, work: Callable[[], Coroutine[object, object, None]]) -> None:
        task = asyncio.create_task(work(), name="network")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _linger(self) -> None:
        """Holder and uplink stay a little after the last VM: the next one starts faster."""
        await asyncio.sleep(LINGER_S)
        await self.stop()

    async def _repair_uplink(self) -> None:
        while True:
            await self._uplink.wait_gone()
            holder = self._holder
            if holder is None:
                return
            log.warning("uplink %s has ended; starting it again", self._kind)
            try:
                await self._uplink.start(holder)
            except (BangerError, OSError, TimeoutError) as error:
                log.error("uplink could not be started again: %s", error)  # noqa: TRY400  the cause is in the text
                await asyncio.sleep(ADDRESSES_EVERY_S)
            await asyncio.sleep(REPAIR_PAUSE_S)

    async def _follow_addresses(self) -> None:
        while True:
            await asyncio.sleep(ADDRESSES_EVERY_S)
            try:
                await self._refresh_addresses()
            except (BangerError, OSError) as error:
                log.warning("the filter could not follow the host's addresses: %s", error)

    async def _refresh_addresses(self, *, force: bool = False) -> None:
        now = host_addresses()
        if self._holder is not None and (force or now != self._known_addresses):
            await self._holder.nft(rules.replace_host_addresses(now))
            self._known_addresses = now

    async def _notice_holder(self) -> None:
        holder = self._holder
        if holder is None:
            return
        await proc.wait_gone(holder.identity)
        if self._holder is holder:
            log.error(
                "the network's holder has ended: running VMs have no network until they are restarted"
            )
            self._holder = None
            holder.close()
            await self._uplink.end()

    def adopted(self, lease: Lease) -> None:
        """A VM that runs since before this daemon holds this lease; its TAP and filter entry are there."""
        self._attached[lease.vm_id] = lease

    async def detach(self, lease: Lease) -> None:
        """Take the filter entry back; the TAP goes with the VMM."""
        self._attached.pop(lease.vm_id, None)
        if self._holder is not None:
            await self._holder.nft(rules.dismiss(lease))
            if not self._attached:
                self._spawn(self._linger)

    async def dial(self, lease: Lease, port: int) -> socket.socket:
        """A connected socket to the guest."""
        if self._holder is None:
            raise ConnectionRefusedError("the network is down")
        descriptor = await self._holder.ask("socket")
        if descriptor is None:
            raise ConnectionRefusedError("the network's holder gave no socket")
        connection = socket.socket(fileno=descriptor)
        try:
            connection.setblocking(False)  # noqa: FBT003  the standard library's signature
            async with asyncio.timeout(DIAL_S):
                await asyncio.get_running_loop().sock_connect(connection, (lease.ip, port))
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        except BaseException:
            connection.close()
            raise
        return connection

    async def describe(self) -> Mapping[str, str]:
        """``mode`` user or qemu-user; ``detail`` says what runs, or why not."""
        if self._why_not is not None:
            return {"mode": "qemu-user", "detail": self._why_not}
        running = f"namespace of pid {self._holder.identity.pid}" if self._holder else "not started"
        return {"mode": "user", "detail": f"{self._kind}, {running}"}

    async def stop(self, *, if_unused: bool = True) -> None:
        """End uplink and holder."""
        async with self._lock:
            holder = self._holder
            if holder is None or (if_unused and self._attached):
                return
            self._holder = None
            await self._end_tasks()
            await self._uplink.end()
            await holder.end()

    async def _end_tasks(self) -> None:
        tasks = self._tasks - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def close(self) -> None:
        """Let go; what VMs use lives on, what nobody uses ends."""
        await self.stop()
        await self._end_tasks()
        if self._holder is not None:
            self._holder.close()
            self._holder = None
