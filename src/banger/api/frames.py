"""Frames of a running command: between CLI and daemon one WebSocket message each, between daemon and agent with a length.

A frame is one byte of type and its payload (at most 64 KiB). On a byte stream the frame is preceded by the
payload's length: ``type:u8 length:u32be payload``.

====  =========  ==================  ==========================================
type  name       direction           payload
====  =========  ==================  ==========================================
0     STDIN      to the guest        bytes
1     STDOUT     from the guest      bytes (the TTY's output, with a TTY)
2     STDERR     from the guest      bytes
3     STDIN_EOF  to the guest        none
4     RESIZE     to the guest        rows:u16be cols:u16be
5     SIGNAL     to the guest        signo:u8
6     EXIT       from the guest      status:u8, 128 + signal if it was killed; the last frame
7     FAILED     from the guest      UTF-8 text: it could not be started; the last frame
====  =========  ==================  ==========================================
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

MAX_PAYLOAD: Final = 64 * 1024


class FrameType(IntEnum):
    """See the module's table."""

    STDIN = 0
    STDOUT = 1
    STDERR = 2
    STDIN_EOF = 3
    RESIZE = 4
    SIGNAL = 5
    EXIT = 6
    FAILED = 7
