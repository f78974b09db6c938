"""What a guest's agent said, made into API structs. The guest is hostile: every value is converted strictly and bounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, TypeVar

import msgspec
from msgspec import Meta

from banger.api import schema
from banger.model.errors import GuestNotReadyError

_Text = Annotated[str, Meta(max_length=256)]
_Count = Annotated[int, Meta(ge=0, le=1 << 62)]
_PortNumber = Annotated[int, Meta(ge=0, le=65535)]


class _Service(msgspec.Struct):
    name: _Text
    port: _PortNumber
    ready: bool


class _Healthz(msgspec.Struct):
    status: _Text
    version: _Text = ""
    boot_id: _Text = ""
    uptime_s: float = 0.0
    services: Annotated[list[_Service], Meta(max_length=64)] = []


class _Stats(msgspec.Struct):
    uptime_s: float | None = None
    load_1m: float | None = None
    memory_total_bytes: _Count | None = None
    memory_available_bytes: _Count | None = None
    rootfs_used_bytes: _Count | None = None
    work_used_bytes: _Count | None = None


class _Port(msgspec.Struct):
    protocol: _Text
    address: _Text
    port: _PortNumber
    process: _Text = ""


_T = TypeVar("_T")


def _convert(said: object, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(said, type=kind)
    except msgspec.ValidationError as error:
        raise GuestNotReadyError(
            "the guest's agent gave a malformed answer",
            detail=str(error),
            hint="banger vm health NAME",
        ) from error


def health(said: Mapping[str, object]) -> schema.Health:
    """The answer to /healthz."""
    answer = _convert(said, _Healthz)
    services = [schema.ServiceStatus(s.name, s.port, ready=s.ready) for s in answer.services]
    return schema.Health(
        reachable=True,
        ready=answer.status == "ok" and all(s.ready for s in services),
        status=answer.status,
        version=answer.version,
        boot_id=answer.boot_id,
        uptime_s=answer.uptime_s,
        services=services,
    )


def fill_stats(stats: schema.Stats, said: Mapping[str, object]) -> None:
    """Add the answer to /stats to what the host knows."""
    answer = _convert(said, _Stats)
    stats.guest_uptime_s = answer.uptime_s
    stats.guest_load_1m = answer.load_1m
    stats.guest_memory_total_bytes = answer.memory_total_bytes
    stats.guest_memory_available_bytes = answer.memory_available_bytes
    stats.guest_rootfs_used_bytes = answer.rootfs_used_bytes
    stats.guest_work_used_bytes = answer.work_used_bytes


def port(said: Mapping[str, object], leads: Mapping[tuple[str, int], int]) -> schema.Port:
    """One element of the answer to /ports; ``leads`` maps protocol (tcp, udp) and guest port to host ports."""
    answer = _convert(said, _Port)
    host_port = leads.get((answer.protocol.removesuffix("6"), answer.port))
    return schema.Port(answer.protocol, answer.address, answer.port, answer.process, host_port)
