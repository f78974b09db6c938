"""What one VM is for Firecracker: a pure function of what was asked, as the requests to send, in order.

Drives appear in the guest in the order of the requests: vda, vdb, vdc. The reasons for single fields stand beside their types (`bodies`)
and in docs/reference/firecracker.md.
"""

from __future__ import annotations

import os
from itertools import pairwise
from pathlib import Path

from banger.model.errors import HostLacksError
from banger.model.ids import is_id
from banger.model.machine import DiskFormat, LaunchRequest, NetworkAttachment, VmPaths
from banger.vmm.firecracker.bodies import (
    Action,
    Balloon,
    Body,
    BootSource,
    Drive,
    Entropy,
    MachineConfiguration,
    NetworkInterface,
    Serial,
    TokenBucket,
    Vsock,
    fitting,
)
from banger.vmm.firecracker.versions import Version

MTU = 65520  # what the uplinks of the namespace network carry; Firecracker's longest frame is 65,562 bytes
FIRST_CID = 3  # 0 to 2 are the hypervisor's, the guest's own and the host's (vsock(7))
_CONSOLE = TokenBucket(size=1 << 20, refill_time=1000)
_FAST_BOOT = (
    "quiet loglevel=1 i8042.noaux i8042.nomux i8042.dumbkbd reboot=k panic=1 net.ifnames=0 "
    "cryptomgr.notests random.trust_cpu=on"
)


def cmdline(image_part: str) -> str:
    """The kernel command line. Firecracker adds pci=off, root=/dev/vda and where its devices are.

    ``i8042.nokbd`` would save some milliseconds more, but the keyboard is the only power button that there is.
    """
    return f"console=ttyS0 {_FAST_BOOT} {image_part}".strip()


def argv(program: Path, vm_id: str, paths: VmPaths) -> list[str]:
    """The command line; the API's socket in it also finds the VM's Firecracker."""
    return [str(program), "--id", vm_id, *arguments(paths)]


def arguments(paths: VmPaths) -> list[str]:
    """The command line without what the jailer gives Firecracker itself."""
    return [*api_words(paths), "--log-path", str(paths.vmm_log), "--level", "Info"]


def api_words(paths: VmPaths) -> tuple[str, str]:
    """The words of the command line that no other process has."""
    return "--api-sock", str(paths.api_socket)


def whose(sockets_dir: Path, line: bytes) -> str | None:
    """The id of the VM with a directory in ``sockets_dir`` whose Firecracker has this command line; None if it is none."""
    words = [os.fsdecode(word) for word in line.split(b"\0")]
    for option, value in pairwise(words):
        path = Path(value)
        name = path.parent.name
        if is_id(name) and (option, value) == api_words(VmPaths(path, sockets_dir / name)):
            return name
    return None


def build(request: LaunchRequest, version: Version) -> list[Body]:
    """The requests that make the VM and start it, for a Firecracker of ``version``."""
    spec, boot, paths = request.spec, request.boot, request.paths
    bodies = (
        MachineConfiguration(vcpu_count=spec.vcpus, mem_size_mib=spec.memory_mib),
        BootSource(
            kernel_image_path=str(boot.kernel),
            initrd_path=str(boot.initramfs),
            boot_args=cmdline(boot.cmdline),
        ),
        Serial(rate_limiter=_CONSOLE),
        Balloon(amount_mib=0, deflate_on_oom=True, free_page_reporting=True),
        *_drives(request),
        *_nic(request.network),
        Vsock(guest_cid=_cid(request.network), uds_path=str(paths.vsock_socket)),
        Entropy(),
        Action(action_type="InstanceStart"),
    )
    fitted = (fitting(body, version) for body in bodies)
    return [body for body in fitted if body is not None]


def _drives(request: LaunchRequest) -> list[Drive]:
    paths, root = request.paths, request.root
    if root.format is not DiskFormat.RAW:
        raise HostLacksError(
            f"Firecracker cannot read the {root.format} disk of VM {request.name}",
            detail=str(root.path),
            hint="start it with --vmm qemu, or create it again",
        )
    return [
        Drive(
            drive_id="rootfs",
            path_on_host=str(root.path),
            is_root_device=True,
            is_read_only=False,
            cache_type="Writeback",
        ),
        Drive(
            drive_id="work",
            path_on_host=str(paths.work),
            is_root_device=False,
            is_read_only=False,
            cache_type="Writeback",
        ),
        Drive(
            drive_id="identity",
            path_on_host=str(paths.identity),
            is_root_device=False,
            is_read_only=True,
        ),
    ]


def _nic(network: NetworkAttachment) -> list[NetworkInterface]:
    if network.mode == "none" or network.lease is None:
        return []
    if network.namespaces is None or not network.tap_name:
        raise HostLacksError(
            "Firecracker has no network of its own, and this host lets banger make none",
            detail=network.warning,
            hint="banger doctor; or create the VM with --network none or --vmm qemu",
        )
    return [
        NetworkInterface(
            iface_id="eth0",
            host_dev_name=network.tap_name,
            guest_mac=network.lease.mac,
            mtu=network.mtu,
        )
    ]


def _cid(network: NetworkAttachment) -> int:
    """Between 3 and 2**32 - 2, as there are fewer leases than that."""
    return FIRST_CID + (0 if network.lease is None else network.lease.index)
