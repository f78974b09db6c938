"""What the engine asks of a guest's agent, as Protocols; see `banger.engine.ports`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Protocol

from banger.model.machine import VmPaths


class ExecSession(Protocol):
    """A command that runs in the guest; frames as in ``api.frames``."""

    async def send(self, kind: int, payload: bytes = b"") -> None: ...
    def frames(self) -> AsyncIterator[tuple[int, bytes]]:
        """Frames from the guest; ends after EXIT or FAILED, or when the guest is gone (without either)."""
        ...

    async def close(self) -> None: ...


class Stream(Protocol):
    """A byte stream to a TCP port in the guest."""

    async def read(self, limit: int = 65536) -> bytes:
        """Some bytes, empty at the end."""
        ...

    async def write(self, data: bytes) -> None:
        """Send all of ``data``, with back-pressure."""
        ...

    async def close(self) -> None: ...


class Guest(Protocol):
    """The agent of one running VM. Every call has a deadline; GuestNotReadyError when the agent does not answer."""

    def wait_connected(self, timeout_s: float) -> Coroutine[object, object, None]:
        """Return when the agent has answered its first healthz."""
        ...

    async def healthz(self, timeout_s: float = 2.0) -> Mapping[str, object]: ...
    async def stats(self, timeout_s: float = 2.0) -> Mapping[str, object]: ...
    async def ports(self, timeout_s: float = 2.0) -> list[Mapping[str, object]]: ...
    async def exec(self, request: Mapping[str, object]) -> ExecSession: ...
    def get_files(self, path: str) -> AsyncIterator[bytes]:
        """A tar stream of ``path``."""
        ...

    async def put_files(self, path: str, tar: AsyncIterator[bytes]) -> None: ...
    async def wait_services(self, timeout_s: float) -> Mapping[str, object]:
        """Healthz once every service answers, or as it is at the end of ``timeout_s``."""
        ...

    async def proxy(self, port: int) -> Stream: ...
    async def set_clock(self, epoch_ms: int, timeout_s: float = 2.0) -> None:
        """Set the guest's clock, which stood still while its vCPUs did."""
        ...

    async def shutdown(self, *, reboot: bool = False) -> None: ...
    async def close(self) -> None: ...


GuestFactory = Callable[[VmPaths, str], Guest]
"""The guest whose VMM has its sockets at these paths, reached as `RunningVmm.agent` says."""
