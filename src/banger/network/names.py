"""Names of VMs for the host: a small server on loopback that answers for the zone ``banger`` and for nothing else.

``NAME.banger`` and ``ID.banger`` have an A record while the host reaches that VM by an address. A VM that is known but has none (it is
stopped, or on the network without privilege) has no data; another name of the zone does not exist; everything else is refused, so that a
resolver goes on to its other servers. The messages are dnspython's work; what it cannot read is answered as malformed, or not at all.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Final, cast

import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.opcode
import dns.rcode
import dns.rdataclass
import dns.rdatatype
import dns.rrset

from banger.model.compat import override

log = logging.getLogger(__name__)

Lookup = Callable[[str], Sequence[str] | None]
"""The addresses of the VM with this name or id; None if there is no such VM."""

ZONE: Final = dns.name.from_text("banger.")
TTL_S: Final = 5  # a VM may be gone by then
MAX_QUERY_BYTES: Final = 1024
MAX_ANSWER_BYTES: Final = 512
MAX_CONNECTIONS: Final = 32
IDLE_S: Final = 10.0
_HEADER_BYTES = 12
_SOA = f"ns.banger. root.banger. 1 3600 600 86400 {TTL_S}"


def answer(query: bytes, lookup: Lookup) -> bytes | None:
    """What to say to ``query``; None where nothing is to be said (it is no query, or too short to be answered)."""
    if not _HEADER_BYTES <= len(query) <= MAX_QUERY_BYTES or query[2] & 0x80:
        return None
    try:
        asked = dns.message.from_wire(query)
        reply = dns.message.make_response(asked, our_payload=MAX_ANSWER_BYTES)
        reply.set_rcode(_fill(asked, reply, lookup))
        return reply.to_wire(max_size=MAX_ANSWER_BYTES)
    except (dns.exception.DNSException, ValueError, NotImplementedError) as error:
        log.debug("names: a query was not understood: %s", error)
        return _malformed(query)


def _fill(
    asked: dns.message.Message, reply: dns.message.Message, lookup: Lookup
) -> dns.rcode.Rcode:
    """Put the answer into ``reply``; its code."""
    if asked.opcode() != dns.opcode.QUERY:
        return dns.rcode.NOTIMP
    if len(asked.question) != 1:
        return dns.rcode.FORMERR
    (question,) = asked.question
    name = question.name
    if question.rdclass != dns.rdataclass.IN or not name.is_subdomain(ZONE):
        return dns.rcode.REFUSED
    reply.flags |= dns.flags.AA
    found = lookup(_host(name)) if len(name) == len(ZONE) + 1 else None
    if found and question.rdtype in {dns.rdatatype.A, dns.rdatatype.ANY}:
        reply.answer.append(dns.rrset.from_text(name, TTL_S, "IN", "A", *found))
        return dns.rcode.NOERROR
    reply.authority.append(dns.rrset.from_text(ZONE, TTL_S, "IN", "SOA", _SOA))
    return dns.rcode.NXDOMAIN if found is None and name != ZONE else dns.rcode.NOERROR


def _host(name: dns.name.Name) -> str:
    return name.labels[0].decode("latin-1").lower()


def _malformed(query: bytes) -> bytes:
    """FORMERR with the query's id, and nothing else of it."""
    return query[:2] + struct.pack(">HHHHH", 0x8000 | int(dns.rcode.FORMERR), 0, 0, 0, 0)


class NameServer:
    """Serves ``lookup`` on UDP and TCP of one loopback port."""

    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._datagrams: asyncio.DatagramTransport | None = None
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()

    async def start(self, port: int) -> int:
        """Listen on 127.0.0.1:``port`` (0: any free one); the real port. OSError if it cannot be had; nothing is listened on then."""
        server = await asyncio.start_server(self._serve, "127.0.0.1", port)
        real = int(server.sockets[0].getsockname()[1])
        try:
            self._datagrams, _ = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: _Datagrams(self._lookup), ("127.0.0.1", real)
            )
        except OSError:
            server.close()
            raise
        self._server = server
        return real

    async def close(self) -> None:
        """Stop listening and end connections; idempotent."""
        if self._datagrams is not None:
            self._datagrams.close()
        if self._server is not None:
            self._server.close()
        for task in list(self._connections):
            task.cancel()
        if self._connections:
            await asyncio.wait(self._connections)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is None or len(self._connections) >= MAX_CONNECTIONS:
            writer.close()
            return
        self._connections.add(task)
        try:
            await self._converse(reader, writer)
        except (OSError, TimeoutError, asyncio.IncompleteReadError) as error:
            log.debug("names: a connection ended: %s", error)
        finally:
            self._connections.discard(task)
            writer.close()

    async def _converse(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Queries one by one, each with its length before it, until the client ends or is silent."""
        while True:
            async with asyncio.timeout(IDLE_S):
                (length,) = struct.unpack(">H", await reader.readexactly(2))
                if length > MAX_QUERY_BYTES:
                    return
                said = answer(await reader.readexactly(length), self._lookup)
                if said is None:
                    return
                writer.write(struct.pack(">H", len(said)) + said)
                await writer.drain()


class _Datagrams(asyncio.DatagramProtocol):
    def __init__(self, lookup: Lookup) -> None:
        self._lookup = lookup
        self._transport: asyncio.DatagramTransport | None = None

    @override
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.DatagramTransport", transport)  # 3.11's is no subclass

    @override
    def datagram_received(self, data: bytes, addr: tuple[str, int]) -> None:
        said = answer(data, self._lookup)
        if said is not None and self._transport is not None:
            with suppress(OSError):
                self._transport.sendto(said, addr)
