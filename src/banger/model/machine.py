"""What passes between the engine and its adapters: values only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from banger.model.lease import Lease
from banger.model.manifest import ImageManifest, Service
from banger.model.spec import VmSpec


class DiskFormat(StrEnum):
    """How a root disk lies in its file: ``qcow2`` over the image's rootfs (QEMU only), or ``raw``, a whole copy (any VMM)."""

    QCOW2 = "qcow2"
    RAW = "raw"


class StorageDriver(StrEnum):
    """How a VM's root disk shares the image's data; see docs/explanation/storage.md."""

    QCOW2 = "qcow2"
    REFLINK = "reflink"
    DM_SNAPSHOT = "dm-snapshot"
    COPY = "copy"

    @property
    def disk_format(self) -> DiskFormat:
        """What a VMM sees of it."""
        return DiskFormat.QCOW2 if self is StorageDriver.QCOW2 else DiskFormat.RAW


@dataclass(frozen=True, slots=True)
class RootDisk:
    """What is a VM's vda: a file, or with ``device`` a block device of the host."""

    path: Path
    format: DiskFormat
    device: bool = False


@dataclass(frozen=True, slots=True)
class StorageChoice:
    """The driver for a new VM, and in few words why that one."""

    driver: StorageDriver
    why: str


@dataclass(frozen=True, slots=True)
class SeedState:
    """A work seed that is whole. ``current``: a clone of it is a home as it is; else something may be missing in it. ``detail``: what was done."""

    current: bool
    detail: str = ""


@dataclass(frozen=True, slots=True)
class StoreFill:
    """How full the store of a VM's changes is. ``trouble``: why it cannot grow any more; empty while it can."""

    vm_id: str
    used_bytes: int
    size_bytes: int
    trouble: str = ""


@dataclass(frozen=True, slots=True)
class VmPaths:
    """Where one VM's files are: ``state`` (disks, logs) and ``runtime`` (sockets); see docs/internals.md."""

    state: Path
    runtime: Path

    @property
    def overlay(self) -> Path:
        """The VM's writable layer over the image's rootfs, where it is a qcow2."""
        return self.state / "overlay.qcow2"

    @property
    def overlay_raw(self) -> Path:
        """The VM's root disk where it is a copy of the image's rootfs, its blocks shared if the file system can."""
        return self.state / "overlay.img"

    @property
    def overlay_cow(self) -> Path:
        """What a VM changed of the image's rootfs, where a dm-snapshot keeps it."""
        return self.state / "overlay.cow"

    @property
    def work(self) -> Path:
        """The work disk."""
        return self.state / "work.img"

    @property
    def identity(self) -> Path:
        """The identity drive: a raw tar."""
        return self.state / "identity.tar"

    @property
    def agent_token(self) -> Path:
        """The bearer token that the guest's agent demands; written with the identity drive."""
        return self.state / "agent-token"

    @property
    def console_log(self) -> Path:
        """The serial console, capped."""
        return self.state / "console.log"

    @property
    def vmm_log(self) -> Path:
        """What the VMM itself printed."""
        return self.state / "vmm.log"

    @property
    def qmp_socket(self) -> Path:
        """QEMU's monitor."""
        return self.runtime / "qmp.sock"

    @property
    def jail(self) -> Path:
        """Where a jail is put together; empty for everybody but the VMM in it."""
        return self.state / "jail"

    @property
    def api_socket(self) -> Path:
        """Firecracker's API."""
        return self.runtime / "api.sock"

    @property
    def vsock_socket(self) -> Path:
        """The host's end of Firecracker's vsock device."""
        return self.runtime / "vsock.sock"

    @property
    def agent_socket(self) -> Path:
        """The agent's mux port."""
        return self.runtime / "agent.sock"

    def bulk_socket(self, number: int) -> Path:
        """The agent's raw port ``number`` (0-based) for bulk transfers."""
        return self.runtime / f"agent-bulk{number}.sock"


@dataclass(frozen=True, slots=True)
class BootStack:
    """What boots an image: absolute paths and the image's part of the kernel command line.

    ``kernel`` is an ELF file; ``bzimage`` is what it came out of, if it did.
    """

    kernel: Path
    initramfs: Path
    rootfs: Path
    work_seed: Path
    cmdline: str
    manifest: ImageManifest
    bzimage: Path | None = None

    @property
    def pvh_kernel(self) -> Path:
        """For a VMM that enters an ELF kernel only by PVH (QEMU): the ELF file, or the bzImage if that has no such entry."""
        return self.kernel if self.manifest.pvh or self.bzimage is None else self.bzimage


@dataclass(frozen=True, slots=True)
class NetworkAttachment:
    """A VM's place in the network for one run.

    With ``mode`` "user" or "bridge" there is a TAP: either ``tap_fd``, its descriptor, or (asked for by name) ``namespaces``, descriptors of the user
    and the network namespace in which a TAP called ``tap_name`` waits to be opened. Descriptors belong to the receiver, who closes them
    after the VMM has them. Neither means QEMU's own user network (no user namespaces on this host) or, with ``mode`` "none", no NIC.
    """

    mode: str
    lease: Lease | None
    tap_fd: int | None = None
    tap_name: str = ""
    warning: str = ""
    namespaces: tuple[int, int] | None = None
    mtu: int = 65520

    @property
    def descriptors(self) -> tuple[int, ...]:
        """All that the receiver must close."""
        tap = () if self.tap_fd is None else (self.tap_fd,)
        return (*tap, *(self.namespaces or ()))


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """All that a VMM needs for one VM. ``vm_id`` is 12 hex digits; ``index``, its lease's, is unique among this daemon's VMs."""

    vm_id: str
    name: str
    spec: VmSpec
    boot: BootStack
    paths: VmPaths
    network: NetworkAttachment
    root: RootDisk
    index: int = 0


@dataclass(frozen=True, slots=True)
class VmmExit:
    """How a VMM ended. ``reason`` is guest-shutdown, guest-reset, guest-panic, host-signal, quit or crash; ``returncode``
    is None for an adopted VMM, which is not our child.
    """

    reason: str
    returncode: int | None = None
    detail: str = ""


@dataclass(frozen=True, slots=True)
class IdentityRequest:
    """What the identity drive says to the guest. ``lease`` None: no network; ``services`` None: those of its own root file
    system; ``peers``: it may reach other VMs, and asks for their names.
    """

    vm_id: str
    name: str
    lease: Lease | None
    mtu: int | None = None
    services: tuple[Service, ...] | None = None
    peers: bool = False


@dataclass(frozen=True, slots=True)
class HostKey:
    """The public half of a VM's SSH host key, as in known_hosts: ``ssh-ed25519 AAAA…``."""

    public: str


@dataclass(frozen=True, slots=True)
class Timeouts:
    """Deadlines in seconds; defaults suit TCG on a busy host."""

    ready_s: float = 180.0
    shutdown_s: float = 30.0
    agent_call_s: float = 5.0
    extra: Mapping[str, float] = field(default_factory=dict)
