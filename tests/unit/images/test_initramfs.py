"""The archive that boots a guest, and what it is made of."""

import subprocess

import pytest

from banger.images.cpio import Cpio
from banger.images.debian import Debian, parse_dpkg
from banger.images.initramfs import make_initramfs
from banger.images.modules import resolve_modules
from banger.images.package import Package
from banger.images.resources import payload_dir
from banger.images.roottar import read_parts
from banger.model.errors import HostLacksError
from tests.framework.toy_root import KERNEL, RELEASE, bz_image, lz4_legacy, root_tar


def parse_newc(data):
    """Name -> (mode, data, rdev) of a newc archive, by its specification."""
    members, position = {}, 0
    while True:
        assert data[position : position + 6] == b"070701"
        fields = [int(data[position + 6 + 8 * n : position + 14 + 8 * n], 16) for n in range(13)]
        size, name_size = fields[6], fields[11]
        begin = position + 110
        name = data[begin : begin + name_size - 1].decode()
        begin += name_size + -(110 + name_size) % 4
        if name == "TRAILER!!!":
            assert begin + size == len(data)
            return members
        members[name] = (fields[1], data[begin : begin + size], tuple(fields[9:11]))
        position = begin + size + -size % 4


def test_a_cpio_reads_back_as_written():
    cpio = Cpio()
    cpio.directory("d")
    cpio.file("d/f", b"12345", 0o755)
    cpio.symlink("l", "d/f")
    cpio.device("c", 5, 1)
    assert parse_newc(cpio.finish()) == {
        "d": (0o040755, b"", (0, 0)),
        "d/f": (0o100755, b"12345", (0, 0)),
        "l": (0o120777, b"d/f", (0, 0)),
        "c": (0o020600, b"", (5, 1)),
    }


def test_modules_load_after_what_they_need_and_built_in_ones_are_left_out():
    dep = "k/net/virtio-net.ko: k/failover.ko k/virtio.ko\nk/failover.ko:\nk/virtio.ko:\nk/blk.ko: k/virtio.ko\n"
    assert resolve_modules(dep, "k/ext4.ko", ["ext4", "virtio_net", "blk"]) == [
        "k/virtio.ko",
        "k/failover.ko",
        "k/net/virtio-net.ko",
        "k/blk.ko",
    ]


def test_a_module_that_the_kernel_lacks_is_an_error():
    with pytest.raises(HostLacksError, match="no module nonesuch"):
        resolve_modules("", "", ["nonesuch"])


def test_the_parts_come_out_of_the_tar(tmp_path):
    parts = read_parts(root_tar(tmp_path / "root.tar"), ["b", "ext4"], Debian())
    assert parts.release == RELEASE
    assert parts.vmlinuz == bz_image(lz4_legacy(KERNEL), len(KERNEL))
    assert parts.module_order == ["kernel/z.ko", "kernel/a.ko", "kernel/b.ko"]
    assert parts.modules["kernel/a.ko"] == b"a" * 9
    assert parts.packages == [Package("bash", "5.2")]


def test_two_kernels_are_refused(tmp_path):
    with pytest.raises(HostLacksError, match="2 kernels"):
        read_parts(root_tar(tmp_path / "root.tar", kernels=("1", "2")), [], Debian())


def test_packages_that_are_only_configured_do_not_count():
    assert parse_dpkg(b"Package: a\nStatus: install ok unpacked\nVersion: 1\n") == []


def test_the_initramfs_has_busybox_modules_in_order_and_init():
    modules = {f"kernel/{name}.ko": name.encode() * 9 for name in "zab"}
    archive = make_initramfs(b"static busybox", modules, b"#!/bin/busybox sh\n")
    assert archive == make_initramfs(b"static busybox", modules, b"#!/bin/busybox sh\n")
    members = parse_newc(archive)
    assert members["modules/order"][1] == b"z.ko\na.ko\nb.ko\n"
    assert members["modules/b.ko"][1] == b"b" * 9
    assert members["init"] == (0o100755, b"#!/bin/busybox sh\n", (0, 0))
    assert members["bin/busybox"][:2] == (0o100755, b"static busybox")
    assert members["dev/console"] == (0o020600, b"", (5, 1))


def test_every_program_that_init_calls_is_in_the_initramfs():
    members = parse_newc(make_initramfs(b"", {}, b""))
    applets = {name[4:] for name in members if name.startswith("bin/")}
    init = (payload_dir() / "init").read_text()
    words = "insmod usleep ip date mount mkdir tar cat rm switch_root".split()
    assert all(f"{word} " in init for word in words), "the list of this test is out of date"
    assert set(words) | {"sh"} <= applets


def test_init_is_valid_shell():
    assert subprocess.run(["sh", "-n", payload_dir() / "init"], check=False).returncode == 0
