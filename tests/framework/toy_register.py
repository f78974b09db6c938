"""What a registration is made of, small: root file systems with and without an agent, modules, and an image to start from."""

import io
import subprocess
import tarfile

from banger.images.boot_files import place_kernel
from banger.images.seal import seal_file, write_manifest
from banger.model.manifest import ImageManifest, Service
from tests.framework.toy_root import RELEASE, bz_image, elf_kernel, lz4_legacy

BUSYBOX = elf_kernel(release="", notes=(), more=b"static busybox")
OS_RELEASE = b'PRETTY_NAME="Toy"\nID=toy\nVERSION_ID="12"\nVERSION_CODENAME=bookworm\n'
FILES = {
    "usr/lib/banger/agent.pyz": b"the agent",
    "usr/lib/os-release": OS_RELEASE,
    "usr/bin/busybox": BUSYBOX,
    "etc/banger/services.json": b'[{"name": "ssh", "port": 22}]',
    "var/lib/dpkg/status": b"Package: bash\nStatus: install ok installed\nVersion: 5.2\n\n",
    "root/.bashrc": b"PS1=x\n",
}
IN_ALL = b"\0virtio-mmio\0virtio_blk\0ext4\0"


def bzimage(release, **more):
    """A bzImage of a toy kernel."""
    kernel = elf_kernel(release, **more)
    return bz_image(lz4_legacy(kernel), len(kernel), release=release)


BASE_KERNEL = bzimage(RELEASE)


def ext4(path, files, *, size_kib=4096):
    """A raw ext4 with these files, all root's."""
    tree = path.with_name(f"{path.name}.tree")
    for name, data in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_bytes(data)
    tree.mkdir(exist_ok=True)
    argv = ["/sbin/mke2fs", "-q", "-F", "-t", "ext4", "-E", "root_owner=0:0,nodiscard", "-d", tree, path, f"{size_kib}k"]  # fmt: skip
    subprocess.run(argv, check=True, capture_output=True)
    return path


def rootfs(path, *, without=(), size_kib=4096, **files):
    """A root file system with an agent; ``files`` replace or add (with / written as __)."""
    changed = {name.replace("__", "/"): data for name, data in files.items()}
    kept = {name: data for name, data in {**FILES, **changed}.items() if name not in without}
    return ext4(path, kept, size_kib=size_kib)


def modules(directory, release):
    """A directory lib/modules/RELEASE as `make modules_install` leaves it; ext4 is built in."""
    for name in ("virtio", "virtio_mmio", "virtio_blk", "virtio_net"):
        path = directory / "kernel" / f"{name}.ko"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"\x7fELF {name}\0vermagic={release} SMP \0".encode())
    needs = "".join(f"kernel/virtio_{n}.ko: kernel/virtio.ko\n" for n in ("mmio", "blk", "net"))
    (directory / "modules.dep").write_text(f"kernel/virtio.ko:\n{needs}")
    (directory / "modules.builtin").write_text("kernel/fs/ext4/ext4.ko\n")
    return directory


def modules_tar(path, release):
    """The same as a tar."""
    directory = modules(path.with_name(f"{path.name}.tree"), release)
    with tarfile.open(path, "w:gz") as archive:
        for file in sorted(directory.rglob("*")):
            if file.is_file():
                data = file.read_bytes()
                info = tarfile.TarInfo(f"./lib/modules/{release}/{file.relative_to(directory)}")
                info.size = len(data)
                archive.addfile(info, io.BytesIO(data))
    return path


def base_image(images, name="debian", came=BASE_KERNEL):
    """An image as if it had been built."""
    work = images / ".making"
    work.mkdir(parents=True)
    rootfs(work / "rootfs.img")
    ext4(work / "work-seed.img", {"seed": b"of the base"})
    subprocess.run(["rm", "-r", work / "rootfs.img.tree", work / "work-seed.img.tree"], check=True)
    (work / "initramfs.img").write_bytes(b"070701 the initramfs of the base")
    (work / "vmlinuz").write_bytes(came)
    kernel = place_kernel(work, {})
    rest = ("rootfs.img", "work-seed.img", "initramfs.img")
    files = {**kernel.files, **{file: seal_file(work / file) for file in rest}}
    manifest = ImageManifest(
        "", name, "debian", "bookworm", "amd64", "2026-01-01T00:00:00.000Z", "0" * 64,
        files["rootfs.img"].size_bytes, RELEASE, "rw base", files, (Service("ssh", 22),), {"bash": "5.2"},
        recipe="debian", kernel_digest=kernel.digest, pvh=kernel.facts.pvh,
    )  # fmt: skip
    made = write_manifest(work, manifest)
    work.rename(images / made.id)
    return made
