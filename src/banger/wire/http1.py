"""An HTTP/1.1 client over any byte stream, by h11. The peer may be a guest and is not trusted: heads are bounded by h11, bodies by
the caller.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Protocol

import h11
import msgspec

from banger.api.malformed import NOT_JSON

MAX_HEAD_BYTES = 16 * 1024
FAILED = b"banger-failed"
"""The trailer with which the guest's agent ends a body that is not whole; see ``banger_agent.http``."""


class ByteStream(Protocol):
    """What a request travels on."""

    @property
    def why(self) -> str:
        """Why the peer has ended it, as far as it said so."""
        ...

    async def read(self, limit: int = 65536) -> bytes:
        """Some bytes, empty at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of ``data``."""
        ...

    async def close(self) -> None:
        """End both directions."""
        ...


class StreamEndedError(ConnectionError):
    """The stream was over before all was sent; the text says why."""


class HttpError(Exception):
    """The peer broke the protocol or ended early; the text says how."""


class Exchange:
    """One request and its answer; `renew` makes it ready for another. ``host`` is what the peer is called in the request."""

    def __init__(self, stream: ByteStream, host: str = "guest") -> None:
        self._stream = stream
        self._host = host
        self._connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=MAX_HEAD_BYTES)
        self.headers: Mapping[str, str] = {}  # of the answer, with names in lower case

    async def send(
        self,
        method: str,
        target: str,
        headers: Mapping[str, str],
        body: bytes | AsyncIterator[bytes] = b"",
    ) -> None:
        """Send the request; a body given piece by piece is sent chunked."""
        fields = {"Host": self._host, **headers}
        if isinstance(body, bytes):
            fields["Content-Length"] = str(len(body))
        else:
            fields["Transfer-Encoding"] = "chunked"
        await self._put(h11.Request(method=method, target=target, headers=list(fields.items())))
        if isinstance(body, bytes):
            await self._put(h11.Data(data=body))
        else:
            async for chunk in body:
                await self._put(h11.Data(data=chunk))
        await self._put(h11.EndOfMessage())

    async def _put(self, event: h11.Request | h11.Data | h11.EndOfMessage) -> None:
        data = self._connection.send(event)
        if data:
            await self._stream.write(data)

    async def _next(self) -> h11.Event | type[h11.PAUSED]:
        try:
            while (event := self._connection.next_event()) is h11.NEED_DATA:
                self._connection.receive_data(await self._stream.read())
        except h11.RemoteProtocolError as error:
            raise HttpError(self._stream.why or str(error)) from error
        return event  # type: ignore[return-value]  # NEED_DATA was handled

    async def status(self) -> int:
        """The status of the answer."""
        event = await self._next()
        if isinstance(event, h11.Response | h11.InformationalResponse):
            self.headers = {
                name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers
            }
            return event.status_code
        raise HttpError(f"an answer was expected, not {type(event).__name__}")

    async def body(self) -> AsyncIterator[bytes]:
        """The answer's body, piece by piece; HttpError if it is cut short, or was said not to be whole."""
        while True:
            event = await self._next()
            if isinstance(event, h11.Data):
                yield bytes(event.data)
            elif isinstance(event, h11.EndOfMessage):
                why = dict(event.headers).get(FAILED)
                if why is not None:
                    raise HttpError(why.decode("latin-1")[:1000])
                return
            else:
                raise HttpError(f"the answer's body was expected, not {event}")

    async def finish(self) -> None:
        """Wait for the end of an answer whose body is empty."""
        async for _ in self.body():
            raise HttpError("the answer has a body where none belongs")

    async def json(self, limit_bytes: int) -> object:
        """The answer's body as JSON, at most ``limit_bytes`` long."""
        data = bytearray()
        async for chunk in self.body():
            data += chunk
            if len(data) > limit_bytes:
                raise HttpError(f"the answer is larger than {limit_bytes} bytes")
        try:
            return msgspec.json.decode(bytes(data)) if data else None
        except NOT_JSON as error:
            raise HttpError(f"the answer is not JSON: {error}") from error

    def renew(self) -> bool:
        """Make it ready for another request on the same stream; False if the last answer is not over or was said to be the last."""
        states = {self._connection.our_state, self._connection.their_state}
        if states == {h11.DONE}:
            self._connection.start_next_cycle()
        return states in ({h11.DONE}, {h11.IDLE})

    def leftover(self) -> bytes:
        """Bytes that came after the head of an upgrade."""
        return bytes(self._connection.trailing_data[0])
