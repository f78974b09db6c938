"""A command that runs in a guest: frames of `banger.api.frames` over a stream."""

from __future__ import annotations

import struct
from collections.abc import AsyncIterator
from contextlib import suppress

from banger.api.frames import MAX_PAYLOAD, FrameType
from banger.wire.http1 import ByteStream

_FRAME = struct.Struct(">BI")
_LAST = {FrameType.EXIT, FrameType.FAILED}


class AgentExec:
    """See `engine.ports.ExecSession`."""

    def __init__(self, stream: ByteStream, early: bytes) -> None:
        self._stream = stream
        self._buffer = bytearray(early)

    async def send(self, kind: int, payload: bytes = b"") -> None:
        """One frame to the guest; for a command that has ended meanwhile it is dropped, and `frames` tells the rest."""
        with suppress(ConnectionError):
            await self._stream.write(_FRAME.pack(kind, len(payload)) + payload)

    async def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """Frames from the guest, the last is EXIT or FAILED; ends without either if the guest is gone or sends nonsense."""
        while True:
            while len(self._buffer) < _FRAME.size:
                if not await self._more():
                    return
            kind, length = _FRAME.unpack_from(self._buffer)
            if length > MAX_PAYLOAD:
                return
            while len(self._buffer) < _FRAME.size + length:
                if not await self._more():
                    return
            payload = bytes(self._buffer[_FRAME.size : _FRAME.size + length])
            del self._buffer[: _FRAME.size + length]
            yield kind, payload
            if kind in _LAST:
                return

    async def _more(self) -> bool:
        data = await self._stream.read()
        self._buffer += data
        return bool(data)

    async def close(self) -> None:
        """Hang up: a command that still runs gets SIGHUP."""
        await self._stream.close()
