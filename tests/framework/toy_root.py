"""A root file system of a few files, as mmdebstrap would give it, and a stand-in for mmdebstrap that gives it."""

import io
import stat
import struct
import tarfile

import lz4.block

RELEASE = "6.1.0-toy"


def elf_kernel(
    release=RELEASE, *, machine=62, bits=64, notes=((b"Xen\0", 18),), interpreter=False, more=b""
):
    """An ELF kernel that boots nowhere: headers, notes (name, type), Linux's banner, some pages that compress."""
    body = b"".join(
        struct.pack("<III", len(name), 8, kind)
        + name.ljust(-(-len(name) // 4) * 4, b"\0")
        + bytes(8)
        for name, kind in notes
    )
    segments = [(4, 512, len(body))] + [(3, 512, 8)] * interpreter
    ident = b"\x7fELF" + bytes([bits // 32, 1, 1]) + bytes(9)
    if bits == 64:
        head = ident + struct.pack(
            "<HHIQQQIHHHHHH", 2, machine, 1, 0, 64, 0, 0, 64, 56, len(segments), 0, 0, 0
        )
        head += b"".join(struct.pack("<IIQQQQQQ", k, 4, at, 0, 0, n, n, 4) for k, at, n in segments)
    else:
        head = ident + struct.pack(
            "<HHIIIIIHHHHHH", 2, machine, 1, 0, 52, 0, 0, 52, 32, len(segments), 0, 0, 0
        )
        head += b"".join(struct.pack("<IIIIIIII", k, at, 0, 0, n, n, 4, 4) for k, at, n in segments)
    banner = f"Linux version {release} (me@here) #1 SMP\n".encode() if release else b""
    return head.ljust(512, b"\0") + body + banner + more + bytes(range(256)) * 64


KERNEL = elf_kernel()


def lz4_legacy(data):
    out = b"\x02\x21\x4c\x18"
    for start in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[start : start + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


def bz_image(payload, size=None, *, release=RELEASE):
    """A bzImage: one setup sector more than the boot sector, then 16 bytes of code, then the payload.

    ``size`` is written behind it; the kernel's build does so for every compression but gzip, which ends with it by itself.
    """
    payload += b"" if size is None else struct.pack("<I", size)
    head = bytearray(1024)
    head[0x1F1] = 1
    head[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", head, 0x20E, 0x100)
    text = f"{release} (me@here) #1 SMP".encode() + b"\0"
    head[0x300 : 0x300 + len(text)] = text
    struct.pack_into("<II", head, 0x248, 16, len(payload))
    return bytes(head) + bytes(16) + payload


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
