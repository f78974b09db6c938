"""What msgspec raises of JSON that somebody else wrote: beside its own errors also those of texts that are no UTF-8, and of depth without end."""

from __future__ import annotations

from typing import Final

import msgspec

NOT_JSON: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
