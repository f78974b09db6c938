"""Two clocks: wall time for records, monotonic time for deadlines. No other module reads either."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime


def now() -> str:
    """The current time as RFC 3339 UTC with milliseconds, e.g. ``2026-01-31T12:00:00.123Z``."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def parse(text: str) -> datetime:
    """The moment that an RFC 3339 ``text`` names; raises ValueError for anything else."""
    return datetime.fromisoformat(text)


def epoch_ms() -> int:
    """The current time in milliseconds since 1970, for those who keep their own clock: guests."""
    return time.time_ns() // 1_000_000


def monotonic_ms() -> float:
    """Milliseconds on a clock that never steps; only differences mean something."""
    return time.monotonic_ns() / 1e6


@dataclass(frozen=True, slots=True)
class Deadline:
    """A moment on the monotonic clock by which something must have happened."""

    at_s: float

    @classmethod
    def after(cls, seconds: float) -> Deadline:
        """The deadline ``seconds`` from now."""
        return cls(time.monotonic() + seconds)

    @property
    def remaining_s(self) -> float:
        """Seconds left, never below zero."""
        return max(0.0, self.at_s - time.monotonic())

    @property
    def passed(self) -> bool:
        """Whether the moment is over."""
        return time.monotonic() >= self.at_s
