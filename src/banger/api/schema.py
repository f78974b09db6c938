"""The structs of the API, as in ``docs/reference/openapi.json``.

Requests forbid unknown fields; answers may grow fields. Times are RFC 3339 UTC, sizes are integers in the unit of the
key's suffix.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import UNSET, Meta, Struct, UnsetType

from banger.api.image_schema import (
    Difference as Difference,
    Image as Image,
    ImageBuild as ImageBuild,
    ImageDiff as ImageDiff,
    ImageExport as ImageExport,
    ImageHistory as ImageHistory,
    ImageImport as ImageImport,
    ImagePlan as ImagePlan,
    ImagePromote as ImagePromote,
    ImageRegister as ImageRegister,
    Name as Name,
    PlannedStage as PlannedStage,
    Service as Service,
    ServiceStatus as ServiceStatus,
)
from banger.model.residue import ResidueKind
from banger.model.residue import Sense as ResidueSense
from banger.model.spec import (
    GROUP_PATTERN,
    MAX_DISK_BYTES,
    MAX_GROUPS,
    MAX_MEMORY_MIB,
    MAX_VCPUS,
    MIN_DISK_BYTES,
    MIN_MEMORY_MIB,
)
from banger.model.units import MIB
from banger.model.usage import DiskKind, LeftoverKind

VmStateName = Literal[
    "creating", "stopped", "starting", "running", "paused", "stopping", "failed", "deleting"
]
OperationStateName = Literal["pending", "running", "succeeded", "failed", "cancelled"]
VmmName = Literal["auto", "firecracker", "qemu"]
NetworkName = Literal["auto", "bridge", "user", "none"]
ProtocolName = Literal["tcp", "udp"]
WaitName = Literal["booted", "agent", "services"]
Timeout = Annotated[float, Meta(gt=0, le=86400)]

# Limits that the engine checks, with better words than a schema's; the document states them all the same.
Vcpus = Annotated[int, Meta(extra_json_schema={"minimum": 1, "maximum": MAX_VCPUS})]
MemoryMib = Annotated[
    int, Meta(extra_json_schema={"minimum": MIN_MEMORY_MIB, "maximum": MAX_MEMORY_MIB})
]
Groups = Annotated[
    list[str],
    Meta(
        description="VMs that share a group reach each other",
        extra_json_schema={
            "maxItems": MAX_GROUPS,
            "uniqueItems": True,
            "items": {"type": "string", "pattern": f"^{GROUP_PATTERN}$"},
        },
    ),
]
DiskBytes = Annotated[
    int,
    Meta(
        description="not below the image's",
        extra_json_schema={"minimum": MIN_DISK_BYTES, "maximum": MAX_DISK_BYTES, "multipleOf": MIB},
    ),
]


class Error(Struct, omit_defaults=False):
    """An RFC 9457 problem: ``code`` is stable, ``what`` names the object, ``hint`` is one next step."""

    code: str
    what: str
    detail: str = ""
    hint: str = ""


class Forward(Struct, forbid_unknown_fields=True):
    """A port of 127.0.0.1 on the host to a port of the guest; in a request host port 0 means any free one."""

    host_port: Annotated[int, Meta(ge=0, le=65535)]
    guest_port: Annotated[int, Meta(ge=1, le=65535)]
    protocol: ProtocolName = "tcp"


class VmForward(Struct):
    """A forward of one VM with its final port of the host; ``open``: whether the host listens there, which it does while the VM runs."""

    host_port: int
    guest_port: int
    protocol: ProtocolName
    open: bool


class ForwardsAdd(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/vms/{ref}/forwards. A forward that is there already is not added again."""

    forwards: Annotated[list[Forward], Meta(min_length=1, max_length=128)]


class VmSpec(Struct):
    """What was asked for."""

    image: str
    vcpus: int
    memory_mib: int
    disk_bytes: int
    work_bytes: int
    vmm: VmmName
    network: NetworkName
    nat: bool
    forwards: list[Forward] = []
    groups: list[str] = []
    autostart: bool = False


class VmStatus(Struct):
    """What was observed; null where there is nothing to observe. ``warning``: what its user should know of this run;
    ``storage``: the driver of its root disk, qcow2, reflink, dm-snapshot or copy.
    """

    vmm: str | None = None
    accel: str | None = None
    pid: int | None = None
    network: str | None = None
    ip: str | None = None
    booted_at: str | None = None
    services: list[ServiceStatus] = []
    forwards: list[Forward] = []
    last_error: Error | None = None
    warning: str = ""
    storage: str | None = None


class Vm(Struct):
    """One VM."""

    id: str
    name: str
    state: VmStateName
    ready: bool
    created_at: str
    spec: VmSpec
    status: VmStatus


class VmCreate(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/vms; everything has a default. ``timeout_s`` bounds the wait for readiness, ``wait`` says how far the
    guest is waited for. ``autostart``: it is started again when the host comes up, if it ran when that went down.
    """

    name: Name | None = None
    image: str = "debian"
    vcpus: Vcpus = 2
    memory_mib: MemoryMib = 2048
    disk_bytes: DiskBytes | None = None
    work_bytes: DiskBytes = 16 << 30
    vmm: VmmName = "auto"
    network: NetworkName = "auto"
    nat: bool = True
    forwards: list[Forward] = []
    groups: Groups = []
    autostart: bool = False
    start: bool = True
    timeout_s: Timeout | None = None
    wait: WaitName = "services"


class VmPatch(Struct, forbid_unknown_fields=True):
    """Body of PATCH /v1/vms/{ref}; forwards, nat, groups and autostart at any time, the others only while stopped. The work disk can only grow."""

    name: Name | UnsetType = UNSET
    vcpus: Vcpus | UnsetType = UNSET
    memory_mib: MemoryMib | UnsetType = UNSET
    work_bytes: DiskBytes | UnsetType = UNSET
    forwards: list[Forward] | UnsetType = UNSET
    nat: bool | UnsetType = UNSET
    groups: Groups | UnsetType = UNSET
    network: NetworkName | UnsetType = UNSET
    autostart: bool | UnsetType = UNSET


class VmStart(Struct, forbid_unknown_fields=True):
    """Body of POST …/start and …/restart; ``wait`` says how far the guest is waited for."""

    timeout_s: Timeout | None = None
    wait: WaitName = "services"


class VmStop(Struct, forbid_unknown_fields=True):
    """Body of POST …/stop; ``force`` ends the VMM at once, as a power cut would."""

    force: bool = False
    timeout_s: Timeout | None = None


class PlannedStep(Struct):
    """A step that would be done. ``effects``: what it would leave on the host until it is undone."""

    stage: str
    what: str
    effects: list[str] = []


class Stage(Struct):
    """One step of an operation."""

    name: str
    state: OperationStateName
    started_at: str
    duration_ms: float | None = None
    detail: str = ""


class Operation(Struct):
    """Something that the daemon does or did; ``target`` is the id of the VM or image, ``target_name`` its name."""

    id: str
    kind: str
    target: str
    target_name: str
    state: OperationStateName
    created_at: str
    duration_ms: float | None
    stages: list[Stage]
    error: Error | None = None


class OperationEvent(Struct):
    """One SSE event of GET /v1/operations/{id}/events: the stage that changed (null at the end) and the whole."""

    stage: Stage | None
    operation: Operation


class VmEvent(Struct):
    """One SSE event ``vm`` of GET /v1/events: the state that a VM has now (null: it is gone), and what went wrong, if that is why."""

    at: str
    id: str
    name: str
    state: str | None
    trouble: str = ""


class Health(Struct):
    """What the guest says of itself; ``reachable`` is false where the agent did not answer in time."""

    reachable: bool
    ready: bool
    status: str = ""
    version: str = ""
    boot_id: str = ""
    uptime_s: float = 0.0
    services: list[ServiceStatus] = []
    detail: str = ""


class Stats(Struct):
    """Use of resources, seen from the host (``vmm_*``, ``net_*``: what the guest sent and received since its start, null without banger's own network)
    and from inside (``guest_*``, null when unreachable).
    """

    vmm_cpu_s: float
    vmm_rss_bytes: int
    overlay_bytes: int
    work_bytes: int
    guest_uptime_s: float | None = None
    guest_load_1m: float | None = None
    guest_memory_total_bytes: int | None = None
    guest_memory_available_bytes: int | None = None
    guest_rootfs_used_bytes: int | None = None
    guest_work_used_bytes: int | None = None
    net_sent_bytes: int | None = None
    net_received_bytes: int | None = None


class Port(Struct):
    """A socket that listens inside the guest, and the host's port that leads to it."""

    protocol: str
    address: str
    port: int
    process: str = ""
    host_port: int | None = None


class Info(Struct):
    """GET /v1/info: the daemon and the host it runs on."""

    version: str
    api_version: str
    pid: int
    started_at: str
    state_dir: str
    runtime_dir: str
    accel: str
    network: str
    network_detail: str
    vms: int
    warnings: list[str] = []


class DiskUse(Struct):
    """What one VM, one image or something else in the state directory takes.

    ``shared_bytes`` are in blocks that other files have too, ``own_bytes`` become free at least when it is removed; both are null where the
    file system does not say. ``storage``: the driver of a VM's root disk.
    """

    kind: DiskKind
    id: str
    name: str
    logical_bytes: int
    allocated_bytes: int
    shared_bytes: int | None
    own_bytes: int | None
    storage: str | None = None


class FileSystem(Struct):
    """A file system that holds something of the state directory."""

    path: str
    size_bytes: int
    free_bytes: int


class DiskUsage(Struct):
    """GET /v1/disk-usage. ``used_bytes`` counts shared blocks once; where ``exact`` is false it is an upper bound."""

    state_dir: str
    items: list[DiskUse]
    used_bytes: int
    exact: bool
    file_systems: list[FileSystem]


class Prune(Struct, forbid_unknown_fields=True):
    """Body of POST /v1/prune. ``images``: those that no VM uses, but for the default one; ``databases``: damaged ones that were kept aside."""

    dry_run: bool = False
    images: bool = False
    databases: bool = False


class Leftover(Struct):
    """Something that nothing uses; ``removed`` is false in a dry run, and where there was an ``error``."""

    kind: LeftoverKind
    name: str
    path: str
    size_bytes: int
    removed: bool = False
    error: Error | None = None


ResidueRemedy = Literal["forget", "recover", "mend", "delete", "sweep", "end", "close", "none"]


class Residue(Struct):
    """Something that exists without a record (``unrecorded``), or is on record and not there (``gone``). ``remedy`` is what POST /v1/audit/fix does about
    it, ``none`` where only people can; ``fixed``, ``did`` and ``error`` are what became of that.
    """

    kind: ResidueKind
    sense: ResidueSense
    name: str
    what: str
    remedy: ResidueRemedy
    vm: str | None = None
    hint: str = ""
    fixed: bool = False
    did: str = ""
    error: Error | None = None


class ResidueEvent(Struct):
    """Event ``residue`` of GET /v1/events: a look at the host found something that the one before did not."""

    at: str
    residue: Residue


class ExecRequest(Struct, forbid_unknown_fields=True):
    """First text message on WS /v1/vms/{ref}/exec; afterwards both sides send binary frames (``api.frames``)."""

    argv: Annotated[list[str], Meta(min_length=1, max_length=4096)]
    env: dict[str, str] = {}
    cwd: str | None = None
    tty: bool = False
    rows: Annotated[int, Meta(ge=1, le=10000)] = 24
    cols: Annotated[int, Meta(ge=1, le=10000)] = 80


encode = msgspec.json.encode
