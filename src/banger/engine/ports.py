"""What the engine asks of the host, as Protocols. Adapters satisfy them structurally; ``daemon/compose.py`` joins them.

The real adapters and the fakes of the tests pass one contract suite (``tests/contract``).
"""

from __future__ import annotations

import socket
from collections.abc import (
    Awaitable,
    Callable,
    Iterable,
    Mapping,
    Sequence,
)
from pathlib import Path
from typing import Protocol

from banger.engine.image_ports import BuildProgress, ImageUpkeep
from banger.model.image_plan import ImageDiff, ImagePlan
from banger.model.lease import Lease, Traffic
from banger.model.machine import (
    BootStack,
    DiskFormat,
    HostKey,
    IdentityRequest,
    LaunchRequest,
    NetworkAttachment,
    RootDisk,
    StorageChoice,
    StorageDriver,
    StoreFill,
    VmmExit,
    VmPaths,
)
from banger.model.manifest import ImageManifest
from banger.model.process import ProcessIdentity
from banger.model.record import LedgerRow, OperationRecord, StageRecord, VmRecord
from banger.model.registration import Registration
from banger.model.residue import NetworkSurvey, Port, Stray
from banger.model.spec import ForwardProtocol, VmmChoice, VmSpec
from banger.model.transfer import ImageExport, ImageImport
from banger.model.usage import DiskUsage, Owner


class RunningVmm(Protocol):
    """A VMM process that runs one VM, started or adopted."""

    @property
    def identity(self) -> ProcessIdentity: ...
    @property
    def vmm(self) -> str:
        """``qemu`` or ``firecracker``."""
        ...

    @property
    def accel(self) -> str:
        """``kvm`` or ``tcg``."""
        ...

    @property
    def agent(self) -> str:
        """What carries the agent's bytes: ``serial`` or ``vsock``."""
        ...

    @property
    def confinement(self) -> str:
        """How it is confined, in few words for the stage's detail; empty if this daemon did not start it."""
        ...

    @property
    def warning(self) -> str:
        """What its user should know of the way in which it runs; empty if all is as it should be."""
        ...

    async def pause(self) -> None: ...
    async def resume(self) -> None: ...
    async def status(self) -> str:
        """``running`` or ``paused``; has a deadline of its own."""
        ...

    async def power_down(self) -> None:
        """Press the power button; returns at once."""
        ...

    async def kill(self) -> None:
        """End the VMM now and wait until it is gone; idempotent."""
        ...

    async def wait(self) -> VmmExit:
        """Return when the VMM has ended; may be awaited by several tasks."""
        ...

    async def close(self) -> None:
        """Let go of monitor connections; the VMM runs on."""
        ...


class Vmm(Protocol):
    """A backend that can run VMs."""

    @property
    def name(self) -> str: ...
    @property
    def root_formats(self) -> tuple[DiskFormat, ...]:
        """The formats of root disks that it can run, the best first."""
        ...

    @property
    def named_tap(self) -> bool:
        """Whether it opens its TAP by name, in the namespaces of the attachment, instead of taking a descriptor."""
        ...

    async def check(self) -> None:
        """Raise HostLacksError if this host cannot run it (program missing, too old, broken)."""
        ...

    async def launch(self, request: LaunchRequest) -> RunningVmm:
        """Start the VMM and return once its monitor answers. On failure nothing is left (process, sockets)."""
        ...

    async def adopt(self, identity: ProcessIdentity, paths: VmPaths) -> RunningVmm | None:
        """Take over a VMM that an earlier daemon started; None if it is gone."""
        ...

    def find(self, paths: VmPaths) -> ProcessIdentity | None:
        """The process that was started for ``paths`` but never recorded."""
        ...

    def all(self, vms_dir: Path, sockets_dir: Path) -> Iterable[tuple[str, ProcessIdentity]]:
        """Every process that runs a VM with its files below ``vms_dir`` and its sockets below ``sockets_dir``, with the VM's id."""
        ...

    def left(self, vm_ids: Iterable[str]) -> frozenset[str]:
        """Those of these VMs of which something is there that `release` removes, and any others of which something is that nobody uses."""
        ...

    async def release(self, paths: VmPaths) -> None:
        """Remove what a run has on the host beside its process, which has ended; idempotent."""
        ...


class Vmms(Protocol):
    """All backends of this host."""

    async def pick(self, choice: VmmChoice, root: DiskFormat | None) -> Vmm:
        """The backend for a VM with this choice whose root disk, if it has one already, has format ``root``.

        Checked and able to run here; HostLacksError or RefusedError says why there is none.
        """
        ...

    def named(self, name: str) -> Vmm:
        """The backend called ``qemu`` or ``firecracker``."""
        ...

    def find(self, paths: VmPaths) -> ProcessIdentity | None:
        """The process of any backend that was started for ``paths`` but never recorded."""
        ...

    async def end(self, identity: ProcessIdentity) -> None:
        """End a process that `find` or `all` found, now, and wait until it is gone; idempotent."""
        ...

    def all(self, vms_dir: Path, sockets_dir: Path) -> Mapping[str, tuple[ProcessIdentity, ...]]:
        """The processes of all backends that run VMs below these directories, by the VM's id."""
        ...

    def left(self, vm_ids: Iterable[str]) -> frozenset[str]:
        """As `Vmm.left`, of any backend."""
        ...

    async def release(self, paths: VmPaths) -> None:
        """Remove what a run of any backend has on the host beside its process, which has ended."""
        ...


class Storage(Protocol):
    """The disks of VMs."""

    async def check_image(self, boot: BootStack) -> None:
        """Raise HostLacksError if a file of the image is missing or has another size, or one of those that boot it other content."""
        ...

    @property
    def wanted_format(self) -> DiskFormat | None:
        """The format of new root disks if one is configured."""
        ...

    async def choose(
        self, boot: BootStack, paths: VmPaths, vmm: str, formats: Sequence[DiskFormat]
    ) -> StorageChoice:
        """The driver for a new VM that ``vmm`` runs, which reads ``formats``, the best first.

        RefusedError or HostLacksError if the configured one cannot work.
        """
        ...

    async def create(
        self, boot: BootStack, spec: VmSpec, paths: VmPaths, driver: StorageDriver
    ) -> str:
        """Make root disk and work disk; a few words on how (``qcow2, reflink``). On failure nothing is left."""
        ...

    def root(self, paths: VmPaths) -> RootDisk | None:
        """The file of the root disk that is there; None if there is none."""
        ...

    async def open_root(self, boot: BootStack, spec: VmSpec, paths: VmPaths) -> RootDisk:
        """What a VMM can use as root disk for one run; on failure nothing is left."""
        ...

    async def close_root(self, paths: VmPaths) -> None:
        """Take back what `open_root` made; idempotent."""
        ...

    async def tend(self, vms: Iterable[VmPaths]) -> list[StoreFill]:
        """Make room in the stores of VMs that run before they are full; how full those are that have one."""
        ...

    async def usage(self, state_dir: Path, owners: Mapping[Path, Owner]) -> DiskUsage:
        """What takes how much of ``state_dir``, by the directories of ``owners``; bounded in time."""
        ...

    def flat_bytes(self, boot: BootStack, paths: VmPaths) -> int:
        """The room that `flatten` may take."""
        ...

    async def flatten(self, boot: BootStack, spec: VmSpec, paths: VmPaths, target: Path) -> str:
        """Copy the root disk of a VM at rest to the new raw file ``target``, which needs no other file; a few words on how.

        What it opens on the host `close_root` takes back, should it be cut short.
        """
        ...

    async def devices(self, vms_dir: Path) -> frozenset[str]:
        """The VMs of this installation whose root disk has a device on the host."""
        ...

    def missing(self, paths: VmPaths) -> Path | None:
        """The disk of a VM that is not there; None if both are. Looks at names alone."""
        ...

    async def sweep(self, vms_dir: Path, running: Iterable[str]) -> list[str]:
        """Remove devices of this installation whose VM does not run; sentences about it."""
        ...

    async def check(self, boot: BootStack, spec: VmSpec, paths: VmPaths) -> None:
        """Raise if the VM's disks are missing or damaged, before it starts."""
        ...

    async def grow_work(self, paths: VmPaths, size_bytes: int) -> None:
        """Grow the work disk and its file system to ``size_bytes``; smaller is refused."""
        ...

    async def delete(self, paths: VmPaths) -> None:
        """Remove root disk and work disk; idempotent."""
        ...


Leases = Callable[[], Sequence[Lease]]
"""All leases as they are when it is called."""


class Network(Protocol):
    """The network of one daemon."""

    async def start(self) -> None:
        """Adopt the network that an earlier daemon left, or probe what this host allows; starts nothing heavy."""
        ...

    def plan_lease(self, vm_id: str, taken: Sequence[Lease]) -> Lease:
        """A free lease (pure); RefusedError if the range is used up."""
        ...

    async def settle(self, lease: Lease, mode: str) -> tuple[Lease, int | None]:
        """The lease as it is in the network to which ``mode`` leads now (number and MAC stay, addresses may be others), and the MTU there."""
        ...

    async def attach(
        self,
        lease: Lease,
        mode: str,
        *,
        named: bool,
        outward: bool = True,
        groups: Sequence[str] = (),
    ) -> NetworkAttachment:
        """Give the VM its TAP, with its filter entries, starting the network if need be.

        With ``named`` the TAP is not handed over open but waits in the namespaces of the attachment. Without ``outward`` the guest reaches
        nothing outside, not even the name server; forwards lead to it all the same. It reaches those in its network who share a group.
        """
        ...

    def adopted(self, lease: Lease) -> None:
        """A VM that was adopted holds this lease."""
        ...

    async def detach(self, lease: Lease) -> None:
        """Take filter entries back; idempotent (the TAP goes with the VMM)."""
        ...

    async def set_outward(self, lease: Lease, *, outward: bool) -> None:
        """Let a guest that is attached reach the outside, or not any more, at once; connections that it had there are cut. Idempotent."""
        ...

    async def set_groups(self, lease: Lease, groups: Sequence[str]) -> None:
        """Let a guest that is attached reach those who share a group with it, and no others, at once. Idempotent."""
        ...

    def traffic(self, lease: Lease) -> Traffic | None: ...  # since it was attached, if it is

    async def dial(
        self, lease: Lease, port: int, *, protocol: ForwardProtocol = ForwardProtocol.TCP
    ) -> socket.socket:
        """A connected non-blocking socket to the guest, or ConnectionError/OSError; HostLacksError if there is no way for UDP."""
        ...

    async def survey(self, leases: Leases) -> NetworkSurvey:
        """Who has a place in the network, and what is there that belongs to none of ``leases``, all of that moment, and is not kept ready."""
        ...

    async def end_stray(self, stray: Stray, leases: Leases) -> None:
        """End or remove what `survey` found, unless it belongs to one of ``leases`` by now; idempotent."""
        ...

    async def describe(self) -> Mapping[str, str]:
        """``mode`` (user, bridge, qemu-user, none) and ``detail`` for info."""
        ...

    async def stop(self, *, if_unused: bool = True) -> None:
        """End holder and uplink when no VM uses them."""
        ...

    async def close(self) -> None:
        """Let go; holder, TAPs and uplink live on."""
        ...


class Identity(Protocol):
    """Makes identity drives and keeps the managed client key and known_hosts."""

    async def write(self, request: IdentityRequest, paths: VmPaths) -> HostKey:
        """Write the identity drive; keeps machine-id, host key and agent token of an earlier one, renews clock and entropy."""
        ...

    def known_hosts(self) -> frozenset[str]:
        """The VMs that have a line in known_hosts, by id."""
        ...

    async def forget(self, vm_id: str, paths: VmPaths) -> None:
        """Remove the drive and the VM's line in known_hosts; idempotent."""
        ...


class Images(ImageUpkeep, Protocol):
    """The catalog of images on disk."""

    def list(self) -> list[ImageManifest]: ...
    def get(self, ref: str) -> ImageManifest:
        """By name, id or unique id prefix; NotFoundError with the command that makes one."""
        ...

    def check_recipe(self, recipe: str, *, name: str | None) -> None:
        """Raise NotFoundError or InvalidInputError if there is no such recipe, it is malformed, or the name is not allowed."""
        ...

    def plan(self, recipe: str, *, name: str | None) -> ImagePlan:
        """What `build` would do, without doing it; errors as of `check_recipe`, and HostLacksError."""
        ...

    async def sbom(self, image_id: str) -> bytes:
        """The image's inventory: SPDX 2.3 in JSON."""
        ...

    async def diff(self, before: str, after: str) -> ImageDiff:
        """How the image ``after`` differs from ``before``, both by id; seconds, the first time."""
        ...

    def downloads(self) -> tuple[Path, int] | None:
        """Where downloads are kept for the next build, and the bytes that they take; None if there are none."""
        ...

    def clear_downloads(self) -> None:
        """Remove them; idempotent."""
        ...

    def boot_stack(self, image_id: str) -> BootStack: ...
    async def build(
        self, recipe: str, *, name: str | None, force: bool, progress: BuildProgress
    ) -> ImageManifest:
        """Build (or find unchanged) an image; ``progress(stage, detail)`` at each step. Interrupted: nothing is left."""
        ...

    async def check_registration(self, wish: Registration) -> None:
        """Raise RefusedError if the name is taken, NotFoundError or InvalidInputError if a file or the base image is missing or wrong.

        As far as that is seen quickly; what `register` finds out later fails the operation.
        """
        ...

    async def register(self, wish: Registration, *, progress: BuildProgress) -> ImageManifest:
        """Make an image out of files that are there; progress and interruption as of `build`."""
        ...

    async def check_import(self, wish: ImageImport) -> str:
        """The name that the image would get; errors as of `check_registration`."""
        ...

    async def import_image(self, wish: ImageImport, *, progress: BuildProgress) -> ImageManifest:
        """Make an image out of an exported image, a container image or a root file system; progress and interruption as of `build`."""
        ...

    async def check_export(self, wish: ImageExport) -> ImageManifest:
        """The image; RefusedError if something is at the target, NotFoundError or InvalidInputError if it cannot be written."""
        ...

    async def export_image(self, wish: ImageExport, *, progress: BuildProgress) -> ImageManifest:
        """Write an image to a file or an OCI layout, which is whole or not there."""
        ...

    async def sweep(self) -> None:
        """Remove what interrupted builds and deletions left; idempotent."""
        ...

    def leftovers(self) -> Sequence[tuple[Path, int]]:
        """What `sweep` would remove, with the bytes that it takes; nothing while a build or deletion runs."""
        ...

    def half_deleted(self) -> Sequence[str]:
        """Ids of images whose deletion broke off: they are none any more, and some of their files are still there."""
        ...

    async def delete(
        self, image_id: str, *, unused: Callable[[], None], progress: BuildProgress
    ) -> None:
        """Delete an image, or what is left of one; idempotent. ``unused()`` is asked when nothing can come in between any more, and raises if
        it may not go. Interrupted: it is whole, or none, and `sweep` or another try removes the rest.
        """
        ...

    def allocated_bytes(self, image_id: str) -> int: ...


class Relays(Protocol):
    """Forwards from 127.0.0.1 of the host."""

    async def add(
        self,
        host_port: int,
        dial: Callable[[], Awaitable[socket.socket]],
        *,
        protocol: ForwardProtocol = ForwardProtocol.TCP,
    ) -> int:
        """Listen on ``host_port`` (0: any free one) and relay each connection, or each client's datagrams, to ``dial()``; the real port.

        RefusedError if the port is taken.
        """
        ...

    def open(self) -> frozenset[Port]:
        """What is listened on."""
        ...

    def free_port(self, protocol: ForwardProtocol, host_port: int = 0) -> int:
        """A port that could be had now; RefusedError if ``host_port`` is taken."""
        ...

    async def remove(
        self, host_port: int, *, protocol: ForwardProtocol = ForwardProtocol.TCP
    ) -> None:
        """Stop listening and end its connections; idempotent."""
        ...

    async def close(self) -> None:
        """Remove all of them."""
        ...


class Store(Protocol):
    """Desired state, operations and the ledger; every call is one transaction."""

    def insert_vm(self, record: VmRecord, lease: Lease | None) -> None: ...
    def update_vm(self, record: VmRecord) -> None: ...
    def delete_vm(self, vm_id: str) -> None: ...
    def vms(self) -> list[VmRecord]: ...
    def leases(self) -> list[Lease]: ...
    def update_lease(self, lease: Lease) -> None: ...
    def insert_operation(self, operation: OperationRecord) -> None: ...
    def update_operation(self, operation: OperationRecord) -> None: ...
    def put_stage(self, operation_id: str, seq: int, stage: StageRecord) -> None: ...
    def operations(self, *, limit: int = 100) -> list[OperationRecord]: ...
    def operation(self, operation_id: str) -> OperationRecord | None: ...
    def unfinished_operations(self) -> list[OperationRecord]: ...
    def intend(self, vm_id: str, effect: str) -> None: ...
    def settle(self, vm_id: str, effect: str) -> None: ...
    def strike(self, vm_id: str, effect: str) -> None: ...
    def ledger(self) -> list[LedgerRow]: ...
    def close(self) -> None: ...
