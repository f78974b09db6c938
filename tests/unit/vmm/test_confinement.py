"""What each VMM may have: golden, for the machine of the tests' toys."""

from dataclasses import replace
from pathlib import Path

import pytest

from banger.host.namespaces import NamespacePair
from banger.model.lease import Lease
from banger.model.machine import (
    BootStack,
    DiskFormat,
    LaunchRequest,
    NetworkAttachment,
    RootDisk,
    VmPaths,
)
from banger.model.spec import VmSpec
from banger.model.units import GIB, MIB
from banger.vmm import confinement
from banger.vmm.confinement import ProgramFiles
from tests.framework.toy import _manifest

PATHS = VmPaths(Path("/s/vms/a"), Path("/r/vms/a"))
IMAGE = Path("/s/images/d")
BOOT = BootStack(
    *(IMAGE / name for name in ("kernel", "initramfs", "rootfs", "seed")), "rw", _manifest(0, {})
)
SPEC = VmSpec(vcpus=2, memory_mib=512, disk_bytes=8 * GIB, work_bytes=16 * GIB)
LEASE = Lease("a" * 12, 3, "02:00:00:00:00:03", "10.0.0.3", 24, "10.0.0.1", "10.0.0.2")
FILES = ProgramFiles(("/usr/bin/vmm", "/lib/libc.so"), ("/usr/share/vmm",))


def request(*, root=DiskFormat.QCOW2, network=None):
    path = PATHS.overlay if root is DiskFormat.QCOW2 else PATHS.overlay_raw
    network = network or NetworkAttachment("user", LEASE, tap_fd=9)
    return LaunchRequest("a" * 12, "one", SPEC, BOOT, PATHS, network, RootDisk(path, root))


def test_qemu_gets_the_vms_files_and_an_empty_network():
    may = confinement.qemu(request(), FILES, accel="tcg")
    assert list(may.paths()) == [
        ("/dev/null", "device"),
        ("/dev/urandom", "device"),
        ("/lib/libc.so", "code"),
        ("/s/images/d/initramfs", "read"),
        ("/s/images/d/kernel", "read"),
        ("/s/images/d/rootfs", "read"),
        ("/s/vms/a/console.log", "write"),
        ("/s/vms/a/identity.tar", "read"),
        ("/s/vms/a/overlay.qcow2", "write"),
        ("/s/vms/a/work.img", "write"),
        ("/usr/bin/vmm", "code"),
        ("/usr/share/vmm", "read"),
    ]
    assert (may.namespaces, may.host_network) == (None, False)


@pytest.mark.parametrize("vmm", ["qemu", "firecracker"])
def test_a_root_disk_that_is_a_device_is_a_node_and_no_file(vmm):
    device = replace(request(), root=RootDisk(Path("/dev/dm-3"), DiskFormat.RAW, device=True))
    if vmm == "qemu":
        may = confinement.qemu(device, FILES, accel="tcg")
    else:
        may = confinement.firecracker(device, FILES)
    assert may.disks == ("/dev/dm-3",)
    assert ("/dev/dm-3", "disk") in may.paths()
    assert "/s/vms/a/work.img" in may.writable


def test_qemu_gets_kvm_only_to_use_it_and_no_image_that_its_disk_does_not_need():
    raw = request(root=DiskFormat.RAW)
    paths = dict(confinement.qemu(raw, FILES, accel="kvm").paths())
    assert paths["/dev/kvm"] == "device"
    assert paths["/s/vms/a/overlay.img"] == "write"
    assert not {"/s/images/d/rootfs", "/s/vms/a/overlay.qcow2"} & paths.keys()


def test_qemus_own_network_is_the_hosts():
    request_ = request(network=NetworkAttachment("qemu-user", LEASE))
    may = confinement.qemu(request_, FILES, accel="tcg")
    assert may.host_network
    assert "/etc/resolv.conf" in may.readable


def test_firecracker_gets_its_sockets_directory_and_the_network_in_which_its_tap_waits():
    network = NetworkAttachment("user", LEASE, tap_name="tap3", namespaces=(7, 8))
    static = ProgramFiles(("/opt/firecracker",))
    may = confinement.firecracker(request(root=DiskFormat.RAW, network=network), static)
    assert list(may.paths()) == [
        ("/dev/kvm", "device"),
        ("/dev/net/tun", "device"),
        ("/dev/urandom", "device"),
        ("/opt/firecracker", "code"),
        ("/r/vms/a", "socket"),
        ("/s/images/d/initramfs", "read"),
        ("/s/images/d/kernel", "read"),
        ("/s/vms/a/identity.tar", "read"),
        ("/s/vms/a/overlay.img", "write"),
        ("/s/vms/a/vmm.log", "write"),
        ("/s/vms/a/work.img", "write"),
    ]
    assert may.namespaces == NamespacePair(7, 8)


def test_firecracker_without_a_network_has_no_tun():
    network = NetworkAttachment("none", None)
    may = confinement.firecracker(request(root=DiskFormat.RAW, network=network), FILES)
    assert "/dev/net/tun" not in may.devices
    assert (may.namespaces, may.host_network) == (None, False)


@pytest.mark.parametrize("make", ["qemu", "firecracker"])
def test_limits_leave_room_for_the_disks_and_the_guests_memory(make):
    more = {"accel": "tcg"} if make == "qemu" else {}
    limits = getattr(confinement, make)(request(), FILES, **more).limits
    assert 16 * GIB < limits.file_bytes < 18 * GIB
    assert 512 * MIB < limits.data_bytes < 4 * GIB
    assert limits.processes > 64 + SPEC.vcpus
    small = replace(request(), spec=replace(SPEC, disk_bytes=GIB, work_bytes=GIB, memory_mib=8192))
    assert getattr(confinement, make)(small, FILES, **more).limits.file_bytes > 8 * GIB
