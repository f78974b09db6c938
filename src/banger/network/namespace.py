"""The holder seen from the daemon: started, adopted, asked; and programs run inside its namespace."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path

import msgspec

from banger.host import fs, proc
from banger.host.exec import find_program, run, spawn
from banger.model.errors import HostLacksError
from banger.model.process import ProcessIdentity
from banger.network.plan import BRIDGE, GATEWAY, GUESTS, MTU

START_S = 10.0
CALL_S = 5.0
TOOL_S = 15.0


class HolderClient:
    """A running holder. ``identity`` is unforgeable; the record ``holder.json`` beside its socket makes it adoptable."""

    def __init__(self, identity: ProcessIdentity, connection: socket.socket) -> None:
        self.identity = identity
        self._connection = connection
        self._lock = asyncio.Lock()

    @classmethod
    async def start(cls, directory: Path, log: Path) -> HolderClient:
        """Start a holder; HostLacksError with its last words if it cannot set up the namespace."""
        fs.make_private_dir(directory)
        path = directory / "holder.sock"
        path.unlink(missing_ok=True)
        log.write_bytes(b"")  # noqa: ASYNC240  an empty local file
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
            listener.bind(str(path))
            path.chmod(0o600)
            listener.listen(8)
            script = Path(__file__).with_name("holder.py")
            settings = [os.geteuid(), os.getegid(), f"{GATEWAY}/{GUESTS.prefixlen}", MTU, BRIDGE]
            argv = [
                sys.executable,
                "-I",
                "-S",
                str(script),
                str(listener.fileno()),
                *map(str, settings),
            ]
            child = spawn(argv, log=log, pass_fds=[listener.fileno()])
            child.returncode = 0  # reaped by host.proc, which waits by pidfd
        identity = proc.identify(child.pid)
        try:
            if identity is None:
                raise ConnectionResetError
            client = cls(identity, await _connect(path))
            await client.ask("ping", timeout_s=START_S)
        except (OSError, TimeoutError) as error:
            if identity is not None:
                await proc.kill(identity)
            said = fs.read_tail(log, 2000).decode(errors="replace").strip().splitlines()
            raise HostLacksError(
                "the network's namespace cannot be set up",
                detail=said[-1] if said else str(error),
                hint="banger daemon status",
            ) from error
        fs.write_atomic(directory / "holder.json", msgspec.json.encode(identity))
        return client

    @classmethod
    async def adopt(cls, directory: Path) -> HolderClient | None:
        """The holder that an earlier daemon started, if it lives and answers."""
        try:
            identity = msgspec.json.decode(
                (directory / "holder.json").read_bytes(), type=ProcessIdentity
            )
        except (OSError, msgspec.MsgspecError):
            return None
        if not proc.alive(identity):
            return None
        try:
            client = cls(identity, await _connect(directory / "holder.sock"))
            await client.ask("ping")
        except (OSError, TimeoutError):
            await proc.kill(identity)
            return None
        return client

    async def ask(
        self, verb: str, *, timeout_s: float = CALL_S, give: int | None = None, **more: str
    ) -> int | None:
        """One request; the descriptor that came with the answer, owned by the caller. OSError if it is refused."""
        async with self._lock, asyncio.timeout(timeout_s):
            loop = asyncio.get_running_loop()
            packet = json.dumps({"do": verb, **more}).encode()
            rights = (
                []
                if give is None
                else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("i", give))]
            )
            self._connection.sendmsg([packet], rights)
            readable: asyncio.Future[None] = loop.create_future()

            def note() -> None:
                if not readable.done():
                    readable.set_result(None)

            loop.add_reader(self._connection, note)
            try:
                await readable
            finally:
                loop.remove_reader(self._connection)
            data, descriptors, _, _ = socket.recv_fds(self._connection, 4096, 1)
        if not data:
            raise ConnectionResetError("the network's holder has ended")
        answer = json.loads(data)
        if not answer.get("ok"):
            raise OSError(f"the network's holder refused {verb}: {answer.get('error')}")
        return descriptors[0] if descriptors else None

    async def run(self, argv: list[str], data: bytes = b"") -> bytes:
        """Run a program inside the namespace; its stdout."""
        enter = [
            find_program("nsenter", package="util-linux"),
            f"--target={self.identity.pid}",
            "--user",
            "--net",
        ]
        return (
            await run([*enter, "--preserve-credentials", "--", *argv], timeout_s=TOOL_S, input=data)
        ).stdout

    async def nft(self, rules: str) -> None:
        """Apply nft commands in one transaction."""
        await self.run([find_program("nft", package="nftables"), "-f", "-"], rules.encode())

    async def end(self) -> None:
        """End the holder; the kernel removes the namespace. Idempotent."""
        with suppress(OSError, TimeoutError):
            await self.ask("end")
        with suppress(TimeoutError):
            async with asyncio.timeout(2):
                await proc.wait_gone(self.identity)
        await proc.kill(self.identity)
        self.close()

    def close(self) -> None:
        """Let go; the holder lives on."""
        self._connection.close()


async def _connect(path: Path) -> socket.socket:
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    connection.setblocking(False)  # noqa: FBT003  the standard library's signature
    try:
        await asyncio.get_running_loop().sock_connect(connection, str(path))
    except BaseException:
        connection.close()
        raise
    return connection


def host_addresses() -> set[str]:
    """All IPv4 addresses of this host, from the kernel's table of local routes (/proc/net/fib_trie)."""
    addresses = set()
    last = ""
    for line in Path("/proc/net/fib_trie").read_text().splitlines():
        words = line.split()
        if words[:1] == ["|--"]:
            last = words[1]
        elif "host" in words and "LOCAL" in words and not last.startswith("127."):
            addresses.add(last)
    return addresses
