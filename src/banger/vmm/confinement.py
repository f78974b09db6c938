"""What each VMM may have of the host: pure functions of what is launched and of the files of its program."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from banger.host.confine_plan import Confinement, Limits
from banger.host.namespaces import NamespacePair
from banger.model.machine import DiskFormat, LaunchRequest
from banger.model.units import GIB, MIB

_RESOLV_CONF = "/etc/resolv.conf"
_LEAST_FILE_BYTES = GIB
_THREADS = 256  # QEMU's pool for disks has up to 64, Firecracker a handful


@dataclass(frozen=True, slots=True)
class ProgramFiles:
    """Files of an installed program: what it executes and loads, what else it reads (firmware); absolute paths."""

    code: tuple[str, ...]
    data: tuple[str, ...] = ()


def qemu(request: LaunchRequest, files: ProgramFiles, *, accel: str) -> Confinement:
    """For QEMU, which is given its sockets and its TAP as descriptors and makes no file."""
    boot, paths = request.boot, request.paths
    own_network = (
        request.network.mode == "qemu-user"
    )  # it is QEMU itself that connects, to where it is told
    image = [boot.rootfs] if request.root.format is DiskFormat.QCOW2 else []
    return Confinement(
        code=files.code,
        readable=(
            *files.data,
            *map(str, (boot.pvh_kernel, boot.initramfs, *image, paths.identity)),
            *([_RESOLV_CONF] if own_network else []),
        ),
        writable=tuple(map(str, (*_root_files(request), paths.work, paths.console_log))),
        disks=_root_devices(request),
        devices=("/dev/null", "/dev/urandom", *(["/dev/kvm"] if accel == "kvm" else [])),
        limits=_limits(request, 3 * GIB),
        host_network=own_network,
    )


def firecracker(request: LaunchRequest, files: ProgramFiles) -> Confinement:
    """For Firecracker, which makes its API's and its vsock's socket in the VM's runtime directory and opens its TAP by name."""
    boot, paths = request.boot, request.paths
    inside = request.network.namespaces
    return Confinement(
        code=files.code,
        readable=(*files.data, *map(str, (boot.kernel, boot.initramfs, paths.identity))),
        writable=tuple(map(str, (*_root_files(request), paths.work, paths.vmm_log))),
        disks=_root_devices(request),
        socket_dirs=(str(paths.runtime),),
        devices=("/dev/kvm", "/dev/urandom", *([] if inside is None else ["/dev/net/tun"])),
        limits=_limits(request, GIB),
        namespaces=None if inside is None else NamespacePair(*inside),
    )


def _root_files(request: LaunchRequest) -> tuple[Path, ...]:
    return () if request.root.device else (request.root.path,)


def _root_devices(request: LaunchRequest) -> tuple[str, ...]:
    return (str(request.root.path),) if request.root.device else ()


def _limits(request: LaunchRequest, overhead_bytes: int) -> Limits:
    """A file as large as the largest disk (a qcow2 has tables beside) or a memory snapshot; memory of guest and VMM."""
    spec = request.spec
    memory_bytes = spec.memory_mib * MIB
    largest = max(spec.disk_bytes, spec.work_bytes, memory_bytes, _LEAST_FILE_BYTES)
    return Limits(
        file_bytes=largest + largest // 64 + GIB,
        data_bytes=memory_bytes + overhead_bytes,
        processes=_THREADS + spec.vcpus,
    )
