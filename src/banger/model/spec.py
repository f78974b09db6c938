"""What a user asks a VM to be. Ranges are checked when the value is built, so a VmSpec is always sound."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from banger.model.compat import override
from banger.model.errors import InvalidInputError
from banger.model.units import GIB, MIB, format_size

MAX_VCPUS = 32  # Firecracker's limit (MAX_SUPPORTED_VCPUS); QEMU microvm's is higher
MAX_GROUPS = 16
GROUP_PATTERN = r"[a-z0-9]([a-z0-9-]{0,30}[a-z0-9])?"
MIN_MEMORY_MIB, MAX_MEMORY_MIB = 128, 1 << 20
MIN_DISK_BYTES, MAX_DISK_BYTES = 64 * MIB, 64 << 40


class VmmChoice(StrEnum):
    """Which VMM to use; ``auto`` takes Firecracker where it can run."""

    AUTO = "auto"
    FIRECRACKER = "firecracker"
    QEMU = "qemu"


class NetworkMode(StrEnum):
    """How the guest reaches the network; ``auto`` takes the best that the host offers."""

    AUTO = "auto"
    BRIDGE = "bridge"
    USER = "user"
    NONE = "none"


class ForwardProtocol(StrEnum):
    """What a forward carries."""

    TCP = "tcp"
    UDP = "udp"


_FORWARD = re.compile(
    r"(?:(?P<host>\d{1,5}):)?(?P<guest>\d{1,5})(?:/(?P<protocol>tcp|udp))?", re.ASCII
)
_GROUP = re.compile(GROUP_PATTERN, re.ASCII)
_HOST_PORT = re.compile(r"(?P<port>\d{1,5})(?:/(?P<protocol>tcp|udp))?", re.ASCII)


@dataclass(frozen=True, slots=True)
class Forward:
    """A port of 127.0.0.1 on the host that leads to a port of the guest; host port 0 takes any free one."""

    host_port: int
    guest_port: int
    protocol: ForwardProtocol = ForwardProtocol.TCP

    def __post_init__(self) -> None:
        _within("host port of a forward", self.host_port, 0, 65535)
        _within("guest port of a forward", self.guest_port, 1, 65535)

    @classmethod
    def parse(cls, text: str) -> Forward:
        """``[HOST:]GUEST[/tcp|/udp]``, without HOST any free port; InvalidInputError for anything else."""
        match = _FORWARD.fullmatch(text)
        if match is None:
            raise InvalidInputError(
                f"forward {_shown(text)} is not [HOST:]GUEST[/tcp|/udp]",
                hint="write port numbers, for example 8080:80 or 5353:53/udp",
            )
        protocol = ForwardProtocol(match["protocol"] or "tcp")
        return cls(int(match["host"] or 0), int(match["guest"]), protocol)

    @property
    def key(self) -> tuple[ForwardProtocol, int]:
        """What nobody else on the host can have at the same time."""
        return self.protocol, self.host_port

    @property
    def target(self) -> tuple[ForwardProtocol, int]:
        """Where it leads in the guest."""
        return self.protocol, self.guest_port

    @override
    def __str__(self) -> str:
        """As it is written for `parse`."""
        host = f"{self.host_port}:" if self.host_port else ""
        return f"{host}{self.guest_port}{suffix(self.protocol)}"


def suffix(protocol: ForwardProtocol) -> str:
    """What is written after the ports of a forward."""
    return "" if protocol is ForwardProtocol.TCP else f"/{protocol}"


def parse_host_port(text: str) -> tuple[ForwardProtocol, int]:
    """``HOST[/tcp|/udp]``: the host's end of a forward; InvalidInputError for anything else."""
    match = _HOST_PORT.fullmatch(text)
    if match is None:
        raise InvalidInputError(
            f"host port {_shown(text)} is not HOST[/tcp|/udp]",
            hint="write a port number, for example 8080 or 5353/udp",
        )
    port = int(match["port"])
    _within("host port of a forward", port, 0, 65535)
    return ForwardProtocol(match["protocol"] or "tcp"), port


def _shown(text: str) -> str:
    return repr(text if len(text) <= 40 else text[:37] + "...")


@dataclass(frozen=True, slots=True)
class VmSpec:
    """The machine that was asked for. Sizes carry their unit; ``image`` is a full image id or name; with ``autostart`` it comes up again with
    its host, if it ran when that went down.
    """

    image: str = "debian"
    vcpus: int = 2
    memory_mib: int = 2048
    disk_bytes: int = 8 * GIB
    work_bytes: int = 16 * GIB
    vmm: VmmChoice = VmmChoice.AUTO
    network: NetworkMode = NetworkMode.AUTO
    nat: bool = True
    forwards: tuple[Forward, ...] = ()
    groups: tuple[str, ...] = ()
    autostart: bool = False

    def __post_init__(self) -> None:
        _check_groups(self.groups, self.network)
        _within("vcpus", self.vcpus, 1, MAX_VCPUS)
        _within("memory_mib", self.memory_mib, MIN_MEMORY_MIB, MAX_MEMORY_MIB)
        for name, size_bytes in (("disk size", self.disk_bytes), ("work size", self.work_bytes)):
            if not MIN_DISK_BYTES <= size_bytes <= MAX_DISK_BYTES:
                raise InvalidInputError(
                    f"{name} {format_size(size_bytes)} is out of range",
                    hint=f"choose {format_size(MIN_DISK_BYTES)} to {format_size(MAX_DISK_BYTES)}",
                )
            if size_bytes % MIB:
                raise InvalidInputError(
                    f"{name} {size_bytes} is not a whole number of MiB",
                    hint="write it as, for example, 8G",
                )
        taken = [f.key for f in self.forwards if f.host_port]
        if len(taken) != len(set(taken)):
            raise InvalidInputError(
                "a host port is forwarded twice", hint="give each forward its own host port"
            )
        if self.network is NetworkMode.NONE and any(
            f.protocol is ForwardProtocol.UDP for f in self.forwards
        ):
            raise InvalidInputError(
                "a VM without a network takes no UDP",
                detail="TCP reaches it through its agent",
                hint="forward TCP, or make the VM with --network user",
            )


def _check_groups(groups: tuple[str, ...], network: NetworkMode) -> None:
    """VMs in a group reach each other."""
    for name in groups:
        if _GROUP.fullmatch(name) is None:
            raise InvalidInputError(
                f"{_shown(name)} is no name of a group",
                detail="it must be 1 to 32 of a-z, 0-9 and '-', and not begin or end with '-'",
                hint="choose another one, for example: --group web",
            )
    if len(groups) > MAX_GROUPS or len(set(groups)) != len(groups):
        raise InvalidInputError(
            f"a VM is in at most {MAX_GROUPS} groups, and in each once",
            hint="banger vm show NAME lists its groups",
        )
    if groups and network is NetworkMode.NONE:
        raise InvalidInputError(
            "a VM without a network is in no group",
            detail="VMs of a group reach each other by the network",
            hint="give it one: --network auto; or no group: --no-groups",
        )


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidInputError(f"{name} {value} is out of range", hint=f"choose {low} to {high}")
