"""How often somebody may do something: a token bucket for each of them. Pure but for the clock that is passed in."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field


@dataclass(slots=True)
class _Bucket:
    tokens: float
    at_s: float


@dataclass(slots=True)
class Buckets:
    """``burst`` times at once, then ``per_s`` a second. Who has not asked for long is forgotten, so that strangers fill no memory."""

    burst: int
    per_s: float
    _buckets: dict[Hashable, _Bucket] = field(default_factory=dict)

    def take(self, who: Hashable, now_s: float) -> bool:
        """Whether ``who`` may once more at ``now_s``, which is monotonic; it is counted then."""
        bucket = self._buckets.get(who)
        if bucket is None:
            self._forget_full(now_s)
            bucket = self._buckets[who] = _Bucket(self.burst, now_s)
        bucket.tokens = min(self.burst, bucket.tokens + (now_s - bucket.at_s) * self.per_s)
        bucket.at_s = now_s
        if bucket.tokens < 1:
            return False
        bucket.tokens -= 1
        return True

    def _forget_full(self, now_s: float) -> None:
        full_s = self.burst / self.per_s
        self._buckets = {who: b for who, b in self._buckets.items() if now_s - b.at_s < full_s}
