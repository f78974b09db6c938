"""The host's end of Firecracker's vsock device: a Unix socket at which a line of text names the guest's port.

``CONNECT <port>`` is answered with ``OK <number>`` once the guest has accepted; if nobody listens there, the connection just ends
(Firecracker, docs/vsock.md, "Host-Initiated Connections"). Until the guest's driver is up nothing is answered at all. Half-close
loses data: whoever speaks over it frames its messages.
"""

from __future__ import annotations

import re
from pathlib import Path

from banger.wire.http1 import StreamEndedError
from banger.wire.unix import UnixStream, connect

MAX_PORT = (1 << 32) - 1
_MAX_LINE_BYTES = 32


async def connect_port(path: Path, port: int) -> UnixStream:
    """A stream to ``port`` of the guest whose vsock device is at ``path``; OSError if there is none. The caller sets the deadline.

    StreamEndedError, which is one, says that nobody listens on that port, or that the answer is nonsense.
    """
    if not 0 <= port <= MAX_PORT:
        raise ValueError(f"{port} is no vsock port")
    stream = await connect(path)
    try:
        await stream.write(
            b"CONNECT %d\n" % port
        )  # in one piece: Firecracker does not wait for more
        _check(await stream.line(_MAX_LINE_BYTES), stream.why)
    except BaseException:
        stream.abort()
        raise
    return stream


def _check(line: bytes, why: str) -> None:
    if not line:
        raise StreamEndedError(why or "nobody listens on that port of the guest")
    if re.fullmatch(rb"OK \d+\n", line) is None:
        raise StreamEndedError(f"the vsock device gave a malformed answer: {line!r}")
