"""What a user asks a VM to be. Ranges are checked when the value is built, so a VmSpec is always sound."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from banger.model.errors import InvalidInputError
from banger.model.units import GIB, MIB, format_size

MAX_VCPUS = 32  # Firecracker's limit (MAX_SUPPORTED_VCPUS); QEMU microvm's is higher
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


@dataclass(frozen=True, slots=True)
class Forward:
    """A TCP port of 127.0.0.1 on the host that leads to a port of the guest; host port 0 takes any free one."""

    host_port: int
    guest_port: int

    def __post_init__(self) -> None:
        _within("host port of a forward", self.host_port, 0, 65535)
        _within("guest port of a forward", self.guest_port, 1, 65535)

    @classmethod
    def parse(cls, text: str) -> Forward:
        """``HOST:GUEST`` or ``GUEST`` (any free host port); InvalidInputError for anything else."""
        host, _, guest = text.rpartition(":")
        if not (guest.isascii() and guest.isdigit() and (host or "0").isdigit()):
            raise InvalidInputError(
                f"forward {text!r} is not HOST:GUEST",
                hint="write two port numbers, for example 8080:80",
            )
        return cls(host_port=int(host or 0), guest_port=int(guest))


@dataclass(frozen=True, slots=True)
class VmSpec:
    """The machine that was asked for. Sizes carry their unit; ``image`` is a full image id or name."""

    image: str = "debian"
    vcpus: int = 2
    memory_mib: int = 2048
    disk_bytes: int = 8 * GIB
    work_bytes: int = 16 * GIB
    vmm: VmmChoice = VmmChoice.AUTO
    network: NetworkMode = NetworkMode.AUTO
    nat: bool = True
    forwards: tuple[Forward, ...] = ()

    def __post_init__(self) -> None:
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
        taken = [f.host_port for f in self.forwards if f.host_port]
        if len(taken) != len(set(taken)):
            raise InvalidInputError(
                "a host port is forwarded twice", hint="give each forward its own host port"
            )


def _within(name: str, value: int, low: int, high: int) -> None:
    if not low <= value <= high:
        raise InvalidInputError(f"{name} {value} is out of range", hint=f"choose {low} to {high}")
