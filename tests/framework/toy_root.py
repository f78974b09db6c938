"""A root file system of a few files, as mmdebstrap would give it, and a stand-in for mmdebstrap that gives it."""

import io
import stat
import struct
import tarfile

import lz4.block

RELEASE = "6.1.0-toy"
KERNEL = b"\x7fELF" + bytes(range(256)) * 64


def lz4_legacy(data):
    out = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


def bz_image(payload, size):
    """A bzImage: one setup sector more than the boot sector, then 16 bytes of code, then the payload and its size."""
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<II", head, 0x248, 16, len(payload) + 4)
    return bytes(head) + bytes(16) + payload + struct.pack("<I", size)


def root_tar(path, *, files=(), kernels=(RELEASE,)):
    """Write the tar; ``files`` are (name, data, uid, mode) more."""
    modules = f"./usr/lib/modules/{RELEASE}"
    members = [
        *[(f"./boot/vmlinuz-{release}", bz_image(lz4_legacy(KERNEL), len(KERNEL)), 0, 0o644) for release in kernels],
        ("./usr/bin/busybox", b"static busybox", 0, 0o755),
        (f"{modules}/modules.dep", b"kernel/b.ko: kernel/a.ko kernel/z.ko\nkernel/a.ko: kernel/z.ko\nkernel/z.ko:\nkernel/un-used.ko:\n", 0, 0o644),
        (f"{modules}/modules.builtin", b"kernel/fs/ext4/ext4.ko\n", 0, 0o644),
        *[(f"{modules}/kernel/{name}.ko", name.encode() * 9, 0, 0o644) for name in ("a", "b", "z", "un-used")],
        ("./var/lib/dpkg/status", b"Package: bash\nStatus: install ok installed\nVersion: 5.2\n\nPackage: gone\nStatus: deinstall ok config-files\nVersion: 1\n", 0, 0o644),
        ("./root/.bashrc", b"PS1=x\n", 0, 0o644),
        ("./home/me/file", b"mine", 1000, 0o4750),
        *files,
    ]  # fmt: skip
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
        known = set()
        for name, data, uid, mode in members:
            parts = name.split("/")
            for depth in range(1, len(parts)):
                parent = "/".join(parts[:depth])
                if parent not in known:
                    known.add(parent)
                    info = tarfile.TarInfo(parent)
                    info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, 1_600_000_000
                    archive.addfile(info)
            info = tarfile.TarInfo(name)
            info.size, info.uid, info.gid, info.mode, info.mtime = (
                len(data),
                uid,
                uid,
                mode,
                1_600_000_000,
            )
            archive.addfile(info, io.BytesIO(data))
        device = tarfile.TarInfo("./dev/null")
        device.type, device.devmajor, device.devminor = tarfile.CHRTYPE, 1, 3
        archive.addfile(device)
        link = tarfile.TarInfo("./bin")
        link.type, link.linkname = tarfile.SYMTYPE, "usr/bin"
        archive.addfile(link)
    return path


FAKE_MMDEBSTRAP = """#!/bin/sh
# Takes the place of mmdebstrap: the target is the argument that ends in root.tar.
for word in "$@"; do case $word in */root.tar) target=$word ;; esac; done
echo "$*" > "{notes}/argv"
: > "$TMPDIR/scratch"
chown 1000:1000 "$TMPDIR/scratch"
echo "I: pretending" >&2
{behaviour}
cp "{tar}" "$target"
"""


def fake_mmdebstrap(directory, tar, behaviour=":"):
    """Put the stand-in into ``directory``, which goes first in PATH."""
    path = directory / "mmdebstrap"
    path.write_text(FAKE_MMDEBSTRAP.format(notes=directory, tar=tar, behaviour=behaviour))
    path.chmod(path.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
    return path
