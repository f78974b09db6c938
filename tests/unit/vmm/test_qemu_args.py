"""QEMU's command line, whole and in its variants."""

import shlex
from dataclasses import replace
from pathlib import Path

import pytest
from inline_snapshot import snapshot

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
from banger.vmm.qemu import args
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
NONE = NetworkAttachment("none", LEASE)
PATHS = VmPaths(STATE, Path("/r/v"))
QCOW2 = RootDisk(PATHS.overlay, DiskFormat.QCOW2)
REQUEST = LaunchRequest("0123456789ab", "box", VmSpec(), BOOT, PATHS, NONE, QCOW2)
FDS = args.Descriptors(qmp=5, agent=6, bulk=(7, 8), tap=None)


def argv(request=REQUEST, fds=FDS, *, accel="tcg", khz=2_600_000):
    return args.build("qemu", request, fds, accel=accel, khz=khz)


def lines(words):
    """One option a line, for reading."""
    return shlex.join(words).replace(" -", "\n-")


def after(words, option):
    return [words[n + 1] for n, word in enumerate(words) if word == option]


def test_a_kernel_that_cannot_be_entered_by_pvh_boots_as_the_bzimage_it_came_in():
    came = replace(BOOT, bzimage=IMAGE / "vmlinuz")
    without = replace(came, manifest=replace(BOOT.manifest, pvh=False))
    for boot, kernel in ((came, "vmlinux"), (without, "vmlinuz")):
        assert after(argv(replace(REQUEST, boot=boot)), "-kernel") == [f"/s/images/i/{kernel}"]


def test_the_whole_command_line_under_emulation():
    assert lines(argv()) == snapshot("""\
qemu
-name banger-0123456789ab
-uuid fe83f4e5-dd03-56a0-8ed8-5b685e51d2a8
-nodefaults
-no-user-config
-no-reboot
-display none
-S
-sandbox on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny
-machine microvm,pit=on,pic=on,rtc=on,acpi=on
-accel tcg,thread=multi
-cpu max
-smp 2
-m 2048
-kernel /s/images/i/vmlinux
-initrd /s/images/i/initramfs.img
-append 'console=ttyS0 quiet loglevel=1 panic=-1 net.ifnames=0 cryptomgr.notests random.trust_cpu=on loglevel=5 pci=off tsc_early_khz=2600000 tsc=reliable rw'
-chardev socket,id=qmp,fd=5,server=on,wait=off
-mon chardev=qmp,mode=control
-chardev file,id=console,path=/s/vms/v/console.log,append=on
-serial chardev:console
-device virtio-serial-device
-chardev socket,id=agent,fd=6,server=on,wait=off
-device virtserialport,chardev=agent,name=banger.agent
-chardev socket,id=bulk0,fd=7,server=on,wait=off
-device virtserialport,chardev=bulk0,name=banger.bulk.0
-chardev socket,id=bulk1,fd=8,server=on,wait=off
-device virtserialport,chardev=bulk1,name=banger.bulk.1
-object rng-random,id=rng,filename=/dev/urandom
-device virtio-rng-device,rng=rng
-drive id=vda,if=none,cache=writeback,aio=threads,format=qcow2,discard=unmap,file=/s/vms/v/overlay.qcow2
-device virtio-blk-device,drive=vda
-drive id=vdb,if=none,cache=writeback,aio=threads,format=raw,discard=unmap,file=/s/vms/v/work.img
-device virtio-blk-device,drive=vdb
-drive id=vdc,if=none,cache=writeback,aio=threads,format=raw,read-only=on,file=/s/vms/v/identity.tar
-device virtio-blk-device,drive=vdc\
""")


def test_with_kvm_the_hosts_cpu_is_passed_and_nothing_is_said_of_the_tsc():
    words = argv(accel="kvm")
    assert after(words, "-accel") == ["kvm"]
    assert after(words, "-cpu") == ["host"]
    assert "tsc_early_khz" not in after(words, "-append")[0]


def test_an_unknown_tsc_is_not_stated():
    assert "tsc_early_khz" not in after(argv(khz=0), "-append")[0]


def test_a_tap_is_passed_by_number_and_carries_large_packets():
    words = argv(
        replace(REQUEST, network=NetworkAttachment("user", LEASE, tap_fd=9)), replace(FDS, tap=9)
    )
    assert after(words, "-netdev") == snapshot(["tap,id=n0,fd=9,vhost=off"])
    assert after(words, "-device")[-1] == snapshot(
        "virtio-net-device,netdev=n0,mac=02:00:00:00:00:04,host_mtu=65520"
    )
    assert replace(FDS, tap=9).all == (5, 6, 7, 8, 9)


def test_qemus_own_network_has_the_leases_addresses_and_no_ipv6():
    words = argv(replace(REQUEST, network=NetworkAttachment("qemu-user", LEASE)))
    assert after(words, "-netdev") == snapshot(
        ["user,id=n0,ipv6=off,net=10.0.0.0/16,host=10.0.255.2,dns=10.0.255.3"]
    )
    assert after(words, "-device")[-1] == snapshot(
        "virtio-net-device,netdev=n0,mac=02:00:00:00:00:04"
    )


def test_qemus_own_network_leads_nowhere_without_nat():
    spec = replace(REQUEST.spec, nat=False)
    words = argv(replace(REQUEST, spec=spec, network=NetworkAttachment("qemu-user", LEASE)))
    assert after(words, "-netdev")[0].endswith(",restrict=on")


@pytest.mark.parametrize(
    "network", [NetworkAttachment("none", LEASE), NetworkAttachment("none", None)]
)
def test_without_network_there_is_no_nic(network):
    words = argv(replace(REQUEST, network=network))
    assert "-netdev" not in words
    assert not any("virtio-net" in word for word in words)


def test_commas_in_paths_do_not_end_an_option():
    paths = VmPaths(Path("/s/a,b/v"), Path("/r/v"))
    words = argv(replace(REQUEST, paths=paths))
    assert any("file=/s/a,,b/v/work.img" in word for word in words)
    assert args.console(paths) in words
    assert "path=/s/a,,b/v/console.log," in args.console(paths)


def test_drives_come_in_the_guests_order():
    drives = after(argv(), "-drive")
    assert [drive.partition(",")[0] for drive in drives] == ["id=vda", "id=vdb", "id=vdc"]
    assert "read-only=on" in drives[2]
    assert "read-only" not in drives[0] + drives[1]


def test_two_vms_never_share_uuid_or_console():
    other = replace(REQUEST, vm_id="ba9876543210", paths=VmPaths(Path("/s/vms/w"), Path("/r/w")))
    for option in ("-uuid", "-name"):
        assert after(argv(), option) != after(argv(other), option)
    assert args.console(other.paths) not in argv()
