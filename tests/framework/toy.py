"""Toy guests: kernels of a few dozen bytes that QEMU's microvm boots in no time, and images around them.

A toy kernel is an ELF with a PVH entry note: QEMU starts it at 1 MiB in 32-bit protected mode. It talks through the serial
port 0x3f8 and ends the machine through the ACPI GED's registers, as a real kernel does.
"""

import struct
import subprocess
from pathlib import Path

from banger.host import fs
from banger.model.machine import (
    BootStack,
    DiskFormat,
    LaunchRequest,
    NetworkAttachment,
    RootDisk,
    VmPaths,
)
from banger.model.manifest import FileEntry, ImageManifest
from banger.model.spec import VmSpec
from banger.model.units import MIB

BASE = 0x100000
_SERIAL = b"\x66\xba\xf8\x03"  # mov dx, 0x3f8
_POWER_OFF = bytes.fromhex("c605 0002a0fe 34")  # mov byte [GED sleep control], S5 | enable
_RESET = bytes.fromhex("c605 0202a0fe 42")  # mov byte [GED reset], 0x42
_IDLE = bytes.fromhex("fa f4 ebfd")  # cli; again: hlt; jmp again


def _say(text):
    return _SERIAL + b"".join(b"\xb0" + bytes([c]) + b"\xee" for c in text.encode())


def _for_ever(code):
    return code + b"\xe9" + struct.pack("<i", -len(code) - 5)


def _on_button(pressed, key):
    """Wait for the ACPI button, then do ``pressed``; or for a key, where there is a keyboard controller, then do ``key``."""
    wait_key = bytes.fromhex(
        "f390 e464 3cff 7408 a801 0f85"
    )  # again: pause; in al, 0x64; cmp al, 0xff; je ged; test al, 1; jnz key
    wait_ged = bytes.fromhex(
        "a1 0000a0fe 85c0 74"
    )  # ged: mov eax, [GED event]; test eax, eax; jz again
    again = -(len(wait_key) + 4 + len(wait_ged) + 1)
    after = wait_ged + struct.pack("<b", again) + pressed
    return wait_key + struct.pack("<i", len(after)) + after + key


LAST_WORD = "[    0.123456] reboot: System halted\n"
BEHAVIOURS = {
    "idle": _say("hello\n") + _IDLE,
    "off": _say("bye\n" + LAST_WORD) + _POWER_OFF + _IDLE,
    "reset": _say("again\n") + _RESET + _IDLE,
    "panic": _say("Kernel panic - not syncing: toy\n") + _RESET + _IDLE,
    "obey": _say("waiting for the button\n") + _on_button(_POWER_OFF + _IDLE, _RESET + _IDLE),
    "chatter": _for_ever(_say("la la la la la la la la la la la la\n")),
}


def toy_kernel(behaviour, *, bits=32):
    """The ELF of a kernel that behaves so. A Firecracker takes 64-bit ones only; both are entered in the same way."""
    code = BEHAVIOURS[behaviour]
    note = struct.pack("<III4sI", 4, 4, 18, b"Xen", BASE)  # XEN_ELFNOTE_PHYS32_ENTRY
    size = len(code)
    if bits == 32:
        rest = struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, BASE, 52, 0, 0, 52, 32, 2, 0, 0, 0)
        load = struct.pack("<IIIIIIII", 1, 0x1000, BASE, BASE, size, size, 7, 0x1000)
        noted = struct.pack("<IIIIIIII", 4, 0x200, 0, 0, len(note), len(note), 4, 4)
    else:
        rest = struct.pack("<HHIQQQIHHHHHH", 2, 62, 1, BASE, 64, 0, 0, 64, 56, 2, 0, 0, 0)
        load = struct.pack("<IIQQQQQQ", 1, 7, 0x1000, BASE, BASE, size, size, 0x1000)
        noted = struct.pack("<IIQQQQQQ", 4, 4, 0x200, 0, 0, len(note), len(note), 4)
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    head = (ident + rest + load + noted).ljust(0x200, b"\0") + note
    return head.ljust(0x1000, b"\0") + code


def toy_image(directory, behaviour="idle", *, seed_bytes=64 * MIB, rootfs_bytes=64 * MIB):
    """An image in ``directory`` whose files are real: kernel, any initramfs, rootfs and work seed with ext4."""
    directory.mkdir(parents=True, exist_ok=True)
    stack = BootStack(
        directory / f"vmlinux-{behaviour}", directory / "initramfs.img", directory / "rootfs.img",
        directory / "work-seed.img", "rw", _manifest(rootfs_bytes, {}),
    )  # fmt: skip
    stack.kernel.write_bytes(toy_kernel(behaviour))
    stack.initramfs.write_bytes(b"toy")
    for path, size_bytes in ((stack.rootfs, rootfs_bytes), (stack.work_seed, seed_bytes)):
        argv = ["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-E", "nodiscard", str(path)]
        subprocess.run([*argv, f"{size_bytes // 1024}k"], check=True, stdout=subprocess.DEVNULL)
    files = {
        path.name: FileEntry(path.stat().st_size, fs.sparse_digest(path))
        for path in (stack.kernel, stack.initramfs, stack.rootfs, stack.work_seed)
    }
    return BootStack(
        stack.kernel,
        stack.initramfs,
        stack.rootfs,
        stack.work_seed,
        "rw",
        _manifest(rootfs_bytes, files),
    )


def _manifest(disk_bytes, files):
    return ImageManifest(
        id="d" * 12, name="debian", distribution="debian", release="bookworm", architecture="amd64",
        created_at="2026-01-01T00:00:00.000Z", inputs_digest="0" * 64, disk_bytes=disk_bytes, kernel_release="6.1",
        cmdline="rw", files=files, recipe="debian",
    )  # fmt: skip


def vm_paths(directory, name="a" * 12):
    """Fresh private directories of one VM."""
    paths = VmPaths(Path(directory) / "vms" / name, Path(directory) / "run" / name)
    for path in (paths.state, paths.runtime):
        fs.make_private_dir(path)
    return paths


def toy_spec(**changes):
    return VmSpec(
        **{"vcpus": 1, "memory_mib": 128, "disk_bytes": 64 * MIB, "work_bytes": 64 * MIB, **changes}
    )


def toy_request(directory, behaviour="idle", *, network=None, root=DiskFormat.QCOW2):
    """A launch request with disks made; ``directory`` must be new."""
    paths = vm_paths(directory)
    boot = toy_image(Path(directory) / "image", behaviour)
    for path in (paths.work, paths.identity):
        path.write_bytes(bytes(1 << 20))
    network = network or NetworkAttachment("none", None)
    return LaunchRequest(
        "a" * 12, "toy", toy_spec(), boot, paths, network, toy_root(boot, paths, root)
    )


def toy_root(boot, paths, kind):
    """A root disk over or of the image's rootfs."""
    if kind is DiskFormat.RAW:
        fs.clone_file(boot.rootfs, paths.overlay_raw)
        return RootDisk(paths.overlay_raw, kind)
    argv = [
        "qemu-img",
        "create",
        "-q",
        "-f",
        "qcow2",
        "-F",
        "raw",
        "-b",
        boot.rootfs,
        paths.overlay,
    ]
    subprocess.run(argv, check=True)
    return RootDisk(paths.overlay, kind)
