"""A program of a build, as a value: what is explained is what is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from banger.host.exec import Completed, run


@dataclass(frozen=True, slots=True)
class Command:
    """``argv``, run with nothing of the caller's environment but ``env`` and what `banger.host.exec` keeps."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)

    async def run(self, *, timeout_s: float, data: bytes | None = None) -> Completed:
        """Run it to its end, with ``data`` as its input; CommandFailedError."""
        return await run(self.argv, timeout_s=timeout_s, input=data, env=self.env)
