"""What Firecracker is told of a VM, whole and in its variants."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from inline_snapshot import snapshot

from banger.model.errors import HostLacksError
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
from banger.vmm.firecracker import backend, config
from banger.vmm.firecracker.binary import Binary
from tests.framework.toy import _manifest

IMAGE, STATE = Path("/s/images/i"), Path("/s/vms/v")
LEASE = Lease("0123456789ab", 4, "02:00:00:00:00:04", "10.0.0.4", 16, "10.0.255.2", "10.0.255.3")
BOOT = BootStack(
    IMAGE / "vmlinux",
    IMAGE / "initramfs.img",
    IMAGE / "rootfs.img",
    IMAGE / "work-seed.img",
    "rw",
    _manifest(0, {}),
)
TAP = NetworkAttachment("user", LEASE, tap_name="tap4", namespaces=(7, 8))
REQUEST = LaunchRequest(
    "0123456789ab",
    "box",
    VmSpec(),
    BOOT,
    VmPaths(STATE, Path("/r/v")),
    TAP,
    RootDisk(STATE / "overlay.img", DiskFormat.RAW),
)
NEWEST = (1, 17, 0)


def requests(request=REQUEST, version=NEWEST):
    """One request a line, for reading."""
    return "\n".join(
        f"{body.endpoint.method} {body.target} {body.encoded().decode()}"
        for body in config.build(request, version)
    )


def body(path, request=REQUEST, version=NEWEST):
    found = [body for body in config.build(request, version) if body.target == path]
    return found[0] if found else None


def test_all_requests_in_their_order():
    assert requests() == snapshot("""\
PUT /machine-config {"vcpu_count":2,"mem_size_mib":2048}
PUT /boot-source {"kernel_image_path":"/s/images/i/vmlinux","initrd_path":"/s/images/i/initramfs.img","boot_args":"console=ttyS0 quiet loglevel=1 i8042.noaux i8042.nomux i8042.dumbkbd reboot=k panic=1 net.ifnames=0 cryptomgr.notests random.trust_cpu=on rw"}
PUT /serial {"rate_limiter":{"size":1048576,"refill_time":1000}}
PUT /balloon {"amount_mib":0,"deflate_on_oom":true,"free_page_reporting":true}
PUT /drives/rootfs {"drive_id":"rootfs","path_on_host":"/s/vms/v/overlay.img","is_root_device":true,"is_read_only":false,"cache_type":"Writeback"}
PUT /drives/work {"drive_id":"work","path_on_host":"/s/vms/v/work.img","is_root_device":false,"is_read_only":false,"cache_type":"Writeback"}
PUT /drives/identity {"drive_id":"identity","path_on_host":"/s/vms/v/identity.tar","is_root_device":false,"is_read_only":true}
PUT /network-interfaces/eth0 {"iface_id":"eth0","host_dev_name":"tap4","guest_mac":"02:00:00:00:00:04","mtu":65520}
PUT /vsock {"guest_cid":7,"uds_path":"/r/v/vsock.sock"}
PUT /entropy {}
PUT /actions {"action_type":"InstanceStart"}\
""")


def test_a_release_is_told_only_what_it_knows():
    assert requests(version=(1, 8, 0)) == snapshot("""\
PUT /machine-config {"vcpu_count":2,"mem_size_mib":2048}
PUT /boot-source {"kernel_image_path":"/s/images/i/vmlinux","initrd_path":"/s/images/i/initramfs.img","boot_args":"console=ttyS0 quiet loglevel=1 i8042.noaux i8042.nomux i8042.dumbkbd reboot=k panic=1 net.ifnames=0 cryptomgr.notests random.trust_cpu=on rw"}
PUT /balloon {"amount_mib":0,"deflate_on_oom":true}
PUT /drives/rootfs {"drive_id":"rootfs","path_on_host":"/s/vms/v/overlay.img","is_root_device":true,"is_read_only":false,"cache_type":"Writeback"}
PUT /drives/work {"drive_id":"work","path_on_host":"/s/vms/v/work.img","is_root_device":false,"is_read_only":false,"cache_type":"Writeback"}
PUT /drives/identity {"drive_id":"identity","path_on_host":"/s/vms/v/identity.tar","is_root_device":false,"is_read_only":true}
PUT /network-interfaces/eth0 {"iface_id":"eth0","host_dev_name":"tap4","guest_mac":"02:00:00:00:00:04"}
PUT /vsock {"guest_cid":7,"uds_path":"/r/v/vsock.sock"}
PUT /entropy {}
PUT /actions {"action_type":"InstanceStart"}\
""")


@pytest.mark.parametrize(
    ("version", "serial", "reporting", "mtu"),
    [
        ((1, 13, 1), False, None, None),
        ((1, 14, 0), False, True, None),
        ((1, 15, 1), False, True, None),
        ((1, 16, 0), True, True, 65520),
    ],
)
def test_fields_come_with_their_release(version, serial, reporting, mtu):
    assert (body("/serial", version=version) is not None) == serial
    assert body("/balloon", version=version).free_page_reporting is reporting
    assert body("/network-interfaces/eth0", version=version).mtu == mtu


def test_the_kernel_command_line_ends_with_the_images_part():
    assert config.cmdline("rw quirk=1") == snapshot(
        "console=ttyS0 quiet loglevel=1 i8042.noaux i8042.nomux i8042.dumbkbd reboot=k panic=1 net.ifnames=0 cryptomgr.notests random.trust_cpu=on rw quirk=1"
    )
    assert config.cmdline("").endswith("random.trust_cpu=on")


def test_the_power_button_needs_the_keyboard():
    assert "i8042.nokbd" not in config.cmdline("rw")


@pytest.mark.parametrize(
    "network", [NetworkAttachment("none", LEASE), NetworkAttachment("none", None)]
)
def test_without_network_there_is_no_nic_and_no_namespace(network):
    request = replace(REQUEST, network=network)
    assert body("/network-interfaces/eth0", request) is None
    assert backend.make_command(Binary(Path("/b/fc"), NEWEST, True), request).pass_fds == ()


def test_two_vms_have_different_cids():
    other = replace(REQUEST, network=replace(TAP, lease=replace(LEASE, index=5)))
    assert (body("/vsock").guest_cid, body("/vsock", other).guest_cid) == (7, 8)
    alone = replace(REQUEST, network=NetworkAttachment("none", None))
    assert body("/vsock", alone).guest_cid == 3


def test_a_host_without_namespaces_has_no_network_for_it():
    request = replace(REQUEST, network=NetworkAttachment("qemu-user", LEASE, warning="no userns"))
    with pytest.raises(HostLacksError, match="no network of its own") as raised:
        config.build(request, NEWEST)
    assert raised.value.detail == "no userns"
    assert "--vmm qemu" in raised.value.hint


def test_a_qcow2_is_refused_before_anything_is_started():
    root = RootDisk(STATE / "overlay.qcow2", DiskFormat.QCOW2)
    with pytest.raises(HostLacksError, match="qcow2"):
        config.build(replace(REQUEST, root=root), NEWEST)


def test_the_command_line_without_a_network():
    alone = replace(REQUEST, network=NetworkAttachment("none", None))
    command = backend.make_command(Binary(Path("/b/firecracker"), NEWEST, True), alone)
    assert shlex.join(command.argv) == snapshot(
        "/b/firecracker --api-sock /r/v/api.sock --id 0123456789ab --log-path /s/vms/v/vmm.log --level Info"
    )


def test_with_a_tap_it_runs_in_the_networks_namespaces_and_inherits_them():
    command = backend.make_command(Binary(Path("/b/firecracker"), NEWEST, True), REQUEST)
    program, *rest = command.argv
    assert program.endswith("/nsenter")
    assert rest[:4] == snapshot(
        ["--preserve-credentials", "--user=/proc/self/fd/7", "--net=/proc/self/fd/8", "--"]
    )
    assert rest[4] == "/b/firecracker"
    assert command.pass_fds == (7, 8)
