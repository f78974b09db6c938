"""What the agent's answers, and their absence, mean as errors."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

from banger.model.errors import (
    BangerError,
    GuestNotReadyError,
    InvalidInputError,
    NotFoundError,
    RefusedError,
)
from banger.wire.http1 import HttpError

AGENT_PORT = 1024
MAX_JSON_BYTES = 1 << 20
CALL_S = 5.0
START_S = (
    90.0  # for a command to start: a hundred at once have to share one emulated CPU of a busy host
)
_ERRORS: Mapping[int, type[BangerError]] = {400: InvalidInputError, 404: NotFoundError}
_HINTS: Mapping[int, str] = {
    400: "banger vm exec --help, banger vm cp --help",
    404: "banger vm exec NAME -- ls -l PATH",
    507: "banger vm exec NAME -- df -h",
}


@asynccontextmanager
async def within(timeout_s: float, what: str) -> AsyncIterator[None]:
    """Everything that can go wrong with a guest in the block becomes one error: GuestNotReadyError."""
    try:
        async with asyncio.timeout(timeout_s):
            yield
    except (TimeoutError, OSError, HttpError) as error:
        detail = str(error) or f"no answer within {timeout_s:g} s"  # a deadline's own has no words
        how = "broke off" if isinstance(error, HttpError) else "did not answer"
        raise GuestNotReadyError(
            f"the guest's agent {how} {what}",
            detail=detail,
            hint="banger vm logs NAME shows its console",
        ) from error


def refusal(status: int, answer: object, what: str) -> BangerError:
    """The error that the agent answered to ``what``, its texts bounded."""
    said = answer if isinstance(answer, dict) else {}
    text = str(said.get("what", f"the guest's agent refused {what} with status {status}"))[:500]
    kind = _ERRORS.get(status, RefusedError if status < 500 else BangerError)
    hint = str(said.get("hint", ""))[:500] or _HINTS.get(status, "banger vm health NAME")
    return kind(text, detail=str(said.get("detail", ""))[:1000], hint=hint)


def mapping(answer: object) -> Mapping[str, object]:
    """``answer`` as an object; GuestNotReadyError if it is none."""
    if not isinstance(answer, dict):
        raise GuestNotReadyError(
            "the guest's agent gave a malformed answer", hint="banger vm health NAME"
        )
    return answer
