"""A daemon's way to its routed uplink: banger-helper where one answers, else, as root, the very same service in this process."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from banger.host.probe import Answer
from banger.model.clock import monotonic_ms
from banger.model.errors import BangerError, HostLacksError
from banger.network.uplinks.service import Attached, UplinkService
from banger.wire.helper import PROTOCOL, ask

_HELLO_S = 2.0
_KNOWN_MS = 500.0


class HostUplinks:
    """Uplinks for this process' user. ``local`` is used by root where no helper has a socket; it is started when it is needed."""

    def __init__(self, socket_path: Path, local: UplinkService) -> None:
        self._path = socket_path
        self._local = local
        self._asking = asyncio.Lock()
        self._answer: Answer | None = None
        self._answered_ms = 0.0

    @property
    def _in_process(self) -> bool:
        return self._local.started or (os.geteuid() == 0 and not self._path.is_socket())

    async def start(self) -> None:
        """Remove what an earlier daemon of root's left and nobody uses; nothing to do for others."""
        if self._in_process and (self._local.directory / "ledger.json").exists():
            await self._local.start()

    async def close(self) -> None:
        """Let go; uplinks live on."""
        await self._local.close()

    async def helper_answers(self) -> Answer:
        """Whether a helper serves this user; many who ask at the same time are answered by one request."""
        async with self._asking:
            if self._answer is None or monotonic_ms() - self._answered_ms > _KNOWN_MS:
                self._answer = await self._say_hello()
                self._answered_ms = monotonic_ms()
            return self._answer

    async def _say_hello(self) -> Answer:
        if self._local.started:
            return Answer(ok=False, why="uplinks are made in this process")
        try:
            result = await ask(self._path, "hello", timeout_s=_HELLO_S)
        except BangerError as error:
            return Answer(ok=False, why=f"{error.what}\n{error.detail}".strip(), hint=error.hint)
        if result.get("protocol") != PROTOCOL:
            return Answer(
                ok=False,
                why=f"banger-helper speaks protocol {result.get('protocol')}, banger {PROTOCOL}",
                hint="update banger and banger-helper to the same release",
            )
        return Answer(ok=True, found=str(self._path))

    async def available(self) -> Answer:
        """Whether there can be an uplink, by a helper or in this process."""
        if self._in_process:
            return Answer(ok=True, found="in this process")
        return await self.helper_answers()

    async def attach(self, namespace: int) -> Attached:
        """The uplink of the network namespace behind this descriptor; the same again if it has one."""
        if self._in_process:
            await self._local.start()
            return await self._local.attach(os.geteuid(), namespace)
        return _attached(await ask(self._path, "uplink.attach", descriptors=[namespace]))

    async def detach(self, slot: int) -> None:
        """Take it back; idempotent."""
        if self._in_process:
            await self._local.start()
            await self._local.detach(os.geteuid(), slot)
        else:
            await ask(self._path, "uplink.detach", slot=slot)


def _attached(result: Mapping[str, Any]) -> Attached:
    try:
        return msgspec.convert(result, Attached)
    except msgspec.ValidationError as error:
        raise HostLacksError(
            "banger-helper described an uplink in a way banger does not know",
            detail=str(error),
            hint="update banger and banger-helper to the same release",
        ) from error
