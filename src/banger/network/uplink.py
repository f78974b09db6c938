"""The uplink: a user-space program that carries the namespace's packets to the host's network, with no privilege.

slirp4netns by default, pasta by configuration. It is started into the holder's namespace, ends with the holder (exit-fd), and is started again
when it dies: guests lose connections, not their network.
"""

from __future__ import annotations

import asyncio
import logging
import os
from pathlib import Path

import msgspec

from banger.host import fs, proc
from banger.host.exec import find_program, spawn
from banger.model.errors import HostLacksError, InvalidInputError
from banger.model.process import ProcessIdentity
from banger.network.namespace import HolderClient
from banger.network.plan import DNS, MTU, UPLINK, UPLINK_NAME

log = logging.getLogger(__name__)
READY_S = 10.0
KINDS = {"slirp4netns": "slirp4netns", "pasta": "passt"}  # program: Debian package


def check_kind(kind: str) -> None:
    """InvalidInputError for an unknown uplink, HostLacksError for one that is not installed."""
    if kind not in KINDS:
        raise InvalidInputError(
            f"uplink {kind!r} is unknown", hint=f"set uplink to {' or '.join(KINDS)}"
        )
    find_program(kind, package=KINDS[kind])


def slirp_argv(program: str, pid: int, ready_fd: int, exit_fd: int, api_socket: Path) -> list[str]:
    """slirp4netns(1): no way to the host's loopback, sandboxed, configured with its standard addresses."""
    return [
        program, "--configure", f"--mtu={MTU}", "--disable-host-loopback", "--enable-sandbox", "--enable-seccomp",
        f"--userns-path=/proc/{pid}/ns/user", f"--ready-fd={ready_fd}", f"--exit-fd={exit_fd}", f"--api-socket={api_socket}", str(pid), UPLINK_NAME,
    ]  # fmt: skip


def pasta_argv(program: str, pid: int) -> list[str]:
    """passt(1): the same addresses as slirp4netns, no ports forwarded, no way to the host's loopback."""
    address, gateway = str(UPLINK[100]), str(UPLINK[2])
    return [
        program, "-f", "-q", "--config-net", "-I", UPLINK_NAME, "--no-map-gw", "-a", address, "-n", "24", "-g", gateway,
        "--dns-forward", DNS, "-m", str(MTU), "-t", "none", "-u", "none", "-T", "none", "-U", "none",
        "--userns", f"/proc/{pid}/ns/user", "--netns", f"/proc/{pid}/ns/net",
    ]  # fmt: skip


class Uplink:
    """One running uplink."""

    def __init__(self, kind: str, directory: Path, log_path: Path) -> None:
        self._kind = kind
        self._record = directory / "uplink.json"
        self._socket = directory / "slirp.sock"
        self._log = log_path
        self.identity: ProcessIdentity | None = None

    def adopt(self) -> bool:
        """Take over the one that an earlier daemon started; False if it is gone."""
        try:
            identity = msgspec.json.decode(self._record.read_bytes(), type=ProcessIdentity)
        except (OSError, msgspec.MsgspecError):
            return False
        self.identity = identity if proc.alive(identity) else None
        return self.identity is not None

    async def start(self, holder: HolderClient) -> None:
        """Start it and wait until it carries packets."""
        program = find_program(self._kind, package=KINDS[self._kind])
        pid = holder.identity.pid
        self._socket.unlink(missing_ok=True)
        ready_read, ready_write = os.pipe()
        exit_read, exit_write = os.pipe()
        try:
            if self._kind == "slirp4netns":
                argv = slirp_argv(program, pid, ready_write, exit_read, self._socket)
                child = spawn(argv, log=self._log, pass_fds=[ready_write, exit_read])
            else:
                child = spawn(pasta_argv(program, pid), log=self._log)
            child.returncode = 0  # reaped by host.proc
            self.identity = proc.identify(child.pid)
            os.close(ready_write)
            ready_write = -1
            await holder.ask("keep", give=exit_write)
            await self._wait_ready(holder, ready_read)
        finally:
            for descriptor in (ready_read, ready_write, exit_read, exit_write):
                if descriptor >= 0:
                    os.close(descriptor)
        fs.write_atomic(self._record, msgspec.json.encode(self.identity))

    async def _wait_ready(self, holder: HolderClient, ready_read: int) -> None:
        try:
            async with asyncio.timeout(READY_S):
                if self._kind == "slirp4netns":
                    told = await _readable(ready_read)
                else:
                    told = await self._link_up(holder)
        except TimeoutError:
            told = False
        if not told:
            await self.end()
            said = fs.read_tail(self._log, 1000).decode(errors="replace").strip()
            raise HostLacksError(
                f"uplink {self._kind} did not start",
                detail=said,
                hint="try the other one: BANGER_UPLINK=pasta",
            )

    async def _link_up(self, holder: HolderClient) -> bool:
        """Pasta says nothing when it is ready: its link shows in the namespace."""
        while self.identity is not None and proc.alive(self.identity):
            text = await holder.run(
                [find_program("ip", package="iproute2"), "-o", "-4", "addr", "show"]
            )
            if UPLINK_NAME.encode() in text:
                return True
            await asyncio.sleep(0.02)
        return False

    async def wait_gone(self) -> None:
        """Return when it has ended."""
        if self.identity is not None:
            await proc.wait_gone(self.identity)

    async def end(self) -> None:
        """End it; idempotent."""
        if self.identity is not None:
            await proc.kill(self.identity)
            self.identity = None
        self._record.unlink(missing_ok=True)


async def _readable(descriptor: int) -> bool:
    """Wait for a byte; False at end of file."""
    loop = asyncio.get_running_loop()
    ready: asyncio.Future[None] = loop.create_future()

    def note() -> None:
        if not ready.done():
            ready.set_result(None)

    loop.add_reader(descriptor, note)
    try:
        await ready
    finally:
        loop.remove_reader(descriptor)
    return bool(os.read(descriptor, 1))
