"""What banger says to Firecracker's API, as types: each body knows its endpoint, each field since which release it exists.

The names are Firecracker's (``src/firecracker/swagger/firecracker.yaml``), the releases are those of its git tags, where "1.0" stands for
1.0 or older. ``docs/reference/firecracker.md`` is made from this file. A field that is None is not sent; `fitting` leaves out what a
release does not know.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Literal, TypeVar

import msgspec
from msgspec import Meta, Struct

from banger.vmm.firecracker import versions
from banger.vmm.firecracker.versions import Version


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A method and a path, in which ``{name}`` stands for a field of the body; ``why`` is what banger uses it for."""

    method: str
    path: str
    since: str
    why: str


def said(since: str, sets: str, why: str = "") -> Meta:
    """The documentation of a field: its first release, what banger sets it to (empty: never), and why."""
    return Meta(description=why, extra={"since": since, "sets": sets})


class Part(Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True, kw_only=True):
    """An object inside a body."""


class Body(Part, frozen=True, kw_only=True):
    """The body of a request."""

    endpoint: ClassVar[Endpoint]

    @property
    def target(self) -> str:
        """The path of the request for this body."""
        return self.endpoint.path.format_map(msgspec.structs.asdict(self))

    def encoded(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)


class TokenBucket(Part, frozen=True, kw_only=True):
    """So many tokens, refilled evenly within ``refill_time`` milliseconds."""

    size: Annotated[int, said("1.0", "the limit")]
    refill_time: Annotated[int, said("1.0", "1000", "a limit is one a second")]


class RateLimiter(Part, frozen=True, kw_only=True):
    """Limits of a device: bytes and operations."""

    bandwidth: Annotated[TokenBucket | None, said("1.0", "")] = None
    ops: Annotated[TokenBucket | None, said("1.0", "")] = None


class MachineConfiguration(Body, frozen=True, kw_only=True):
    """The machine's size."""

    endpoint = Endpoint("PUT", "/machine-config", "1.0", "the machine's size")
    vcpu_count: Annotated[int, said("1.0", "the VM's vcpus")]
    mem_size_mib: Annotated[int, said("1.0", "the VM's memory")]


class BootSource(Body, frozen=True, kw_only=True):
    """Kernel, initramfs and command line."""

    endpoint = Endpoint("PUT", "/boot-source", "1.0", "kernel, initramfs and command line")
    kernel_image_path: Annotated[
        str, said("1.0", "the image's vmlinux", "bzImage is accepted by newer releases only")
    ]
    initrd_path: Annotated[str | None, said("1.0", "the image's initramfs")] = None
    boot_args: Annotated[
        str | None, said("1.0", "see banger.vmm.firecracker.config", "words for a fast boot")
    ] = None


class Drive(Body, frozen=True, kw_only=True):
    """A disk."""

    endpoint = Endpoint(
        "PUT", "/drives/{drive_id}", "1.0", "root disk, work disk, identity, in the guest's order"
    )
    drive_id: Annotated[str, said("1.0", "rootfs, work or identity")]
    path_on_host: Annotated[str, said("1.0", "the VM's file")]
    is_root_device: Annotated[
        bool,
        said(
            "1.0",
            "true for the root disk",
            "it becomes vda wherever it stands, and an initramfs of one's own finds root= on the command line",
        ),
    ]
    is_read_only: Annotated[bool, said("1.0", "true for the identity drive")]
    cache_type: Annotated[
        Literal["Unsafe", "Writeback"] | None,
        said("1.0", "Writeback for disks", "the default drops the guest's flushes"),
    ] = None
    rate_limiter: Annotated[RateLimiter | None, said("1.0", "")] = None


class NetworkInterface(Body, frozen=True, kw_only=True):
    """A NIC."""

    endpoint = Endpoint("PUT", "/network-interfaces/{iface_id}", "1.0", "the NIC, if there is one")
    iface_id: Annotated[str, said("1.0", "eth0")]
    host_dev_name: Annotated[
        str,
        said("1.0", "the VM's TAP", "it lies in the network's namespace, where Firecracker runs"),
    ]
    guest_mac: Annotated[str, said("1.0", "the lease's")]
    mtu: Annotated[
        int | None,
        said(
            "1.16", "65520", "what the uplinks carry; older guests get it from the identity drive"
        ),
    ] = None
    rx_rate_limiter: Annotated[RateLimiter | None, said("1.0", "")] = None
    tx_rate_limiter: Annotated[RateLimiter | None, said("1.0", "")] = None


class Vsock(Body, frozen=True, kw_only=True):
    """The vsock device."""

    endpoint = Endpoint("PUT", "/vsock", "1.0", "the way to the agent")
    guest_cid: Annotated[
        int, said("1.0", "3 + the lease's number", "each VM's own, though only its socket counts")
    ]
    uds_path: Annotated[str, said("1.0", "vsock.sock in the VM's runtime directory")]


class Entropy(Body, frozen=True, kw_only=True):
    """A virtio-rng device."""

    endpoint = Endpoint("PUT", "/entropy", "1.4", "randomness from the host")
    rate_limiter: Annotated[RateLimiter | None, said("1.4", "")] = None


class Balloon(Body, frozen=True, kw_only=True):
    """A balloon device."""

    endpoint = Endpoint("PUT", "/balloon", "1.0", "free memory of the guest goes back to the host")
    amount_mib: Annotated[int, said("1.0", "0", "nothing is taken from the guest")]
    deflate_on_oom: Annotated[bool, said("1.0", "true", "the guest's need comes first")]
    free_page_reporting: Annotated[
        bool | None, said("1.14", "true", "pages that the guest frees are given back at once")
    ] = None


class Serial(Body, frozen=True, kw_only=True):
    """The serial console."""

    endpoint = Endpoint("PUT", "/serial", "1.14", "a bound for what a guest may print")
    rate_limiter: Annotated[
        TokenBucket | None,
        said(
            "1.16",
            "1 MiB a second",
            "the console is capped every few seconds only; it stays standard output, which is opened for appending, as a serial_out_path would not be",
        ),
    ] = None


class Action(Body, frozen=True, kw_only=True):
    """Something to do now."""

    endpoint = Endpoint("PUT", "/actions", "1.0", "start; press the power button")
    action_type: Annotated[
        Literal["InstanceStart", "SendCtrlAltDel"],
        said(
            "1.0",
            "InstanceStart, SendCtrlAltDel",
            "the latter is all that there is of a power button",
        ),
    ]


class Vm(Body, frozen=True, kw_only=True):
    """Whether the vCPUs run."""

    endpoint = Endpoint("PATCH", "/vm", "1.0", "pause and resume")
    state: Annotated[Literal["Paused", "Resumed"], said("1.0", "Paused, Resumed")]


class Logger(Body, frozen=True, kw_only=True):
    """Firecracker's own log; a launch gives it on the command line, so that nothing is said before it."""

    endpoint = Endpoint("PUT", "/logger", "1.0", "")
    log_path: Annotated[str | None, said("1.0", "")] = None
    level: Annotated[
        Literal["Error", "Warning", "Info", "Debug", "Trace", "Off"] | None, said("1.0", "")
    ] = None


class Metrics(Body, frozen=True, kw_only=True):
    """Counters, written every minute."""

    endpoint = Endpoint("PUT", "/metrics", "1.0", "")
    metrics_path: Annotated[str, said("1.0", "")]


class MmdsConfig(Body, frozen=True, kw_only=True):
    """The metadata service; banger's guests get their identity from a drive, before there is a network."""

    endpoint = Endpoint("PUT", "/mmds/config", "1.0", "")
    network_interfaces: Annotated[tuple[str, ...], said("1.0", "")]
    version: Annotated[Literal["V1", "V2"] | None, said("1.0", "")] = None


@dataclass(frozen=True, slots=True)
class MmdsContents:
    """What the metadata service answers with: any JSON object, below Firecracker's limit of 50 KiB."""

    endpoint: ClassVar[Endpoint] = Endpoint("PUT", "/mmds", "1.0", "")
    values: Mapping[str, object]

    @property
    def target(self) -> str:
        """The path of the request."""
        return self.endpoint.path

    def encoded(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self.values)


class MemoryBackend(Part, frozen=True, kw_only=True):
    """Where a snapshot's memory comes from."""

    backend_type: Annotated[Literal["File", "Uffd"], said("1.1", "")]
    backend_path: Annotated[str, said("1.1", "")]


class NetworkOverride(Part, frozen=True, kw_only=True):
    """Another TAP for a NIC of the snapshot."""

    iface_id: Annotated[str, said("1.12", "")]
    host_dev_name: Annotated[str, said("1.12", "")]


class VsockOverride(Part, frozen=True, kw_only=True):
    """Another socket for the vsock device of the snapshot."""

    uds_path: Annotated[str, said("1.16", "")]


class SnapshotCreate(Body, frozen=True, kw_only=True):
    """Write a paused VM into two files."""

    endpoint = Endpoint("PUT", "/snapshot/create", "1.0", "")
    snapshot_path: Annotated[str, said("1.0", "")]
    mem_file_path: Annotated[str, said("1.0", "")]
    snapshot_type: Annotated[Literal["Full", "Diff"] | None, said("1.0", "")] = None


class SnapshotLoad(Body, frozen=True, kw_only=True):
    """Make a VM out of them, in a fresh Firecracker."""

    endpoint = Endpoint("PUT", "/snapshot/load", "1.0", "")
    snapshot_path: Annotated[str, said("1.0", "")]
    mem_backend: Annotated[MemoryBackend, said("1.1", "")]
    resume_vm: Annotated[bool | None, said("1.0", "")] = None
    track_dirty_pages: Annotated[bool | None, said("1.13", "")] = None
    network_overrides: Annotated[tuple[NetworkOverride, ...] | None, said("1.12", "")] = None
    vsock_override: Annotated[VsockOverride | None, said("1.16", "")] = None
    clock_realtime: Annotated[bool | None, said("1.16", "")] = None


class InstanceInfo(Struct, frozen=True):
    """The answer to GET /."""

    endpoint: ClassVar[Endpoint] = Endpoint("GET", "/", "1.0", "whether the VM runs or is paused")
    state: Annotated[str, said("1.0", "", "Not started, Running or Paused")]
    vmm_version: Annotated[str, said("1.0", "", "what an adopted Firecracker can do")]


BODIES: Final[tuple[type[Body], ...]] = (
    MachineConfiguration, BootSource, Serial, Balloon, Drive, NetworkInterface, Vsock, Entropy, Action, Vm,
    Logger, Metrics, MmdsConfig, SnapshotCreate, SnapshotLoad,
)  # fmt: skip

Message = Body | MmdsContents
_P = TypeVar("_P", bound=Part)


def documented(kind: type[Struct]) -> Iterator[tuple[str, object, Mapping[str, str], str]]:
    """Name, type, ``since`` and ``sets``, and the why of each field."""
    for name, hint in typing.get_type_hints(kind, include_extras=True).items():
        if typing.get_origin(hint) is Annotated:
            bare, meta = typing.get_args(hint)
            yield name, bare, meta.extra, meta.description or ""


def fitting(body: _P, version: Version) -> _P | None:
    """``body`` without the fields that ``version`` does not know; None if it knows nothing of what was said."""
    changes: dict[str, object] = {}
    kept = 0
    for name, _, notes, _ in documented(type(body)):
        value = getattr(body, name)
        if value is None:
            continue
        if versions.since(notes["since"]) > version:
            changes[name] = None
        else:
            kept += 1
            if isinstance(value, Part):
                changes[name] = fitting(value, version)
    if changes and not kept:
        return None
    return msgspec.structs.replace(body, **changes) if changes else body
